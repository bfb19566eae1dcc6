{% if patches %}
/* A convolution gathers what its filters see at two neighbouring positions, a patch, and multiplies it by one filter
 * after the other. Mirrored filters come in pairs, and half of the multiplications give both: with the inputs p of the
 * first half of the channels, q of the second, flipped from left to right as their weights b are, and weights a of p,
 *     s = sum (a + b) * (p + q)    d = sum (a - b) * (p - q)
 * are the sum and the difference of the outputs sum a * p + b * q and sum a * q + b * p. */
{% endif %}

/* The values of a map at a position, from the group's first channel on; outside of the map those of `outside`. */
static const int8_t *values_at(const map *from, const int8_t *values, const int8_t *outside, int y, int x)
{
    if (y < 0 || y >= from->size || x < 0 || x >= from->size)
        return outside;
    return values + (y * from->size + x) * from->channels;
}

#if defined(KERNELS_MVE)
{% if patches %}
/* A patch is p of the first position, its q if mirrored, and then those of the second position, of int8. Here p and q
 * are multiplied by a and b themselves: 16 products of int8 take no longer than 8 of p + q or p - q would. Each of them
 * is filled up with zeros to a multiple of 16, so what is read of weights behind a filter counts nothing. */
typedef int8_t patch_value;

static void copy(const int8_t *from, int8_t *to, int count)
{
    for (; count >= 16; count -= 16, from += 16, to += 16)
        vstrbq_s8(to, vldrbq_s8(from));
    if (count > 0) {
        const mve_pred16_t lanes = vctp8q((uint32_t)count);
        vstrbq_p_s8(to, vldrbq_z_s8(from, lanes), lanes);
    }
}

static void gather(const filters *layer, const map *from, const int8_t *values, const int8_t *outside, int row,
                   int column, int position, int taps, patch_value *patch)
{
    const int last = layer->kernel - 1, inputs = from->channels / layer->groups;
    const int count = layer->mirrored ? inputs / 2 : inputs, length = (taps + 15) / 16 * 16;
    int8_t *p = patch + position * (layer->mirrored ? 2 * length : length), *end = p + length;
    for (int i = 0; i <= last; i++)
        for (int j = 0; j <= last; j++, p += count) {
            const int y = row * layer->stride - layer->padding + i * layer->dilation;
            const int left = column * layer->stride - layer->padding;
            copy(values_at(from, values, outside, y, left + j * layer->dilation), p, count);
            if (layer->mirrored)
                copy(values_at(from, values, outside, y, left + (last - j) * layer->dilation) + count, p + length,
                     count);
        }
    for (; p < end; p++) {
        *p = 0;
        if (layer->mirrored)
            p[length] = 0;
    }
}

/* Outputs of a filter, of its mirror image, and of both at the second position; every fourth of `sums`. */
static void mirrored_sums(const int8_t *a, const int8_t *b, const patch_value *patch, int taps, int32_t *sums)
{
    const int vectors = (taps + 15) / 16;
    const int8_t *p0 = patch, *q0 = p0 + 16 * vectors, *p1 = q0 + 16 * vectors, *q1 = p1 + 16 * vectors;
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0;
    for (int i = 0; i < vectors; i++, a += 16, b += 16, p0 += 16, q0 += 16, p1 += 16, q1 += 16) {
        const int8x16_t aa = vldrbq_s8(a), bb = vldrbq_s8(b);
        int8x16_t p = vldrbq_s8(p0), q = vldrbq_s8(q0);
        a0 = vmladavaq_s8(vmladavaq_s8(a0, aa, p), bb, q);
        b0 = vmladavaq_s8(vmladavaq_s8(b0, aa, q), bb, p);
        p = vldrbq_s8(p1), q = vldrbq_s8(q1);
        a1 = vmladavaq_s8(vmladavaq_s8(a1, aa, p), bb, q);
        b1 = vmladavaq_s8(vmladavaq_s8(b1, aa, q), bb, p);
    }
    sums[0] = a0, sums[4] = b0, sums[8] = a1, sums[12] = b1;
}

/* Outputs of filters a, b at the first position, and at the second, eight further. */
static void plain_sums(const int8_t *a, const int8_t *b, const patch_value *patch, int taps, int32_t *sums)
{
    const int vectors = (taps + 15) / 16;
    const int8_t *p0 = patch, *p1 = p0 + 16 * vectors;
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0;
    for (int i = 0; i < vectors; i++, a += 16, b += 16, p0 += 16, p1 += 16) {
        const int8x16_t aa = vldrbq_s8(a), bb = vldrbq_s8(b), p = vldrbq_s8(p0), q = vldrbq_s8(p1);
        a0 = vmladavaq_s8(a0, aa, p);
        b0 = vmladavaq_s8(b0, bb, p);
        a1 = vmladavaq_s8(a1, aa, q);
        b1 = vmladavaq_s8(b1, bb, q);
    }
    sums[0] = a0, sums[1] = b0, sums[8] = a1, sums[9] = b1;
}

{% endif %}
/* At most four outputs, of filters from `filter` on. */
static void rescale(const int32_t *sums, const filters *layer, int filter, int count, int zero, int8_t *result)
{
    const mve_pred16_t lanes = vctp32q((uint32_t)count);
    int32x4_t value = vaddq_s32(vldrwq_s32(sums), vldrwq_z_s32(layer->bias + filter, lanes));
    value = vmulhq_s32(vmulq_n_s32(value, layer->gain), vldrwq_z_s32(layer->multipliers + filter, lanes));
    const uint32x4_t shifts = vldrbq_z_u32(layer->shifts + filter, lanes);
    value = vaddq_n_s32(vrshlq_s32(value, vnegq_s32(vreinterpretq_s32_u32(shifts))), zero);
    value = vmaxq_s32(vminq_s32(value, vdupq_n_s32(127)), vdupq_n_s32(-128));
    vstrbq_p_s32(result, value, lanes);
}
#else
{% if patches %}
typedef int16_t patch_value;

/* Where a patch holds value `item` of `width` of a tap; item is 2 * position + (0 for p + q, 1 for p - q) if mirrored,
 * else the position. */
static int place(int tap, int width, int item)
{
#if defined(KERNELS_DSP) /* words of taps 0 and 2, and of 1 and 3, of every four: so SXTB16 gives the weights */
    return 2 * (width * (2 * (tap >> 2) + (tap & 1)) + item) + ((tap >> 1) & 1);
#else
    return width * tap + item;
#endif
}

{% endif %}
#if defined(KERNELS_DSP)
static int32_t word(const void *bytes)
{
    int32_t value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

/* Bytes 1 and 3, as SXTB16 gives bytes 0 and 2. */
static int16x2_t odd(int32_t bytes)
{
    return __sxtb16((int8x4_t)((uint32_t)bytes >> 8));
}
#endif

{% if patches %}
static void gather(const filters *layer, const map *from, const int8_t *values, const int8_t *outside, int row,
                   int column, int position, int taps, patch_value *patch)
{
    const int last = layer->kernel - 1, inputs = from->channels / layer->groups, half = inputs / 2;
    int tap = 0;
    for (int i = 0; i <= last; i++)
        for (int j = 0; j <= last; j++) {
            const int y = row * layer->stride - layer->padding + i * layer->dilation;
            const int left = column * layer->stride - layer->padding;
            const int8_t *p = values_at(from, values, outside, y, left + j * layer->dilation);
            if (layer->mirrored) {
                const int8_t *q = values_at(from, values, outside, y, left + (last - j) * layer->dilation) + half;
#if defined(KERNELS_DSP)
                if (half % 4 == 0) {
                    int32_t *words = (int32_t *)(void *)patch + 2 * tap + 2 * position;
                    for (int k = 0; k < half; k += 4, words += 8) {
                        const int32_t pp = word(p + k), qq = word(q + k);
                        words[0] = __sadd16(__sxtb16(pp), __sxtb16(qq));
                        words[1] = __ssub16(__sxtb16(pp), __sxtb16(qq));
                        words[4] = __sadd16(odd(pp), odd(qq));
                        words[5] = __ssub16(odd(pp), odd(qq));
                    }
                    tap += half;
                    continue;
                }
#endif
                for (int k = 0; k < half; k++, tap++) {
                    patch[place(tap, 4, 2 * position)] = (int16_t)(p[k] + q[k]);
                    patch[place(tap, 4, 2 * position + 1)] = (int16_t)(p[k] - q[k]);
                }
            } else
                for (int k = 0; k < inputs; k++, tap++)
                    patch[place(tap, 2, position)] = p[k];
        }
    for (; tap < taps; tap++) /* where weights are filled up */
        if (layer->mirrored) {
            patch[place(tap, 4, 2 * position)] = 0;
            patch[place(tap, 4, 2 * position + 1)] = 0;
        } else
            patch[place(tap, 2, position)] = 0;
}

/* Outputs of a filter, of its mirror image, and of both at the second position; every fourth of `sums`. */
static void mirrored_sums(const int8_t *a, const int8_t *b, const patch_value *patch, int taps, int32_t *sums)
{
    int32_t s0 = 0, d0 = 0, s1 = 0, d1 = 0;
#if defined(KERNELS_DSP)
    const int32_t *words = (const int32_t *)(const void *)patch;
    for (const int8_t *end = a + taps; a < end; a += 4, b += 4, words += 8) {
        const int32_t aa = word(a), bb = word(b);
        int16x2_t s = __sadd16(__sxtb16(aa), __sxtb16(bb)), d = __ssub16(__sxtb16(aa), __sxtb16(bb));
        s0 = __smlad(s, words[0], s0);
        d0 = __smlad(d, words[1], d0);
        s1 = __smlad(s, words[2], s1);
        d1 = __smlad(d, words[3], d1);
        s = __sadd16(odd(aa), odd(bb)), d = __ssub16(odd(aa), odd(bb));
        s0 = __smlad(s, words[4], s0);
        d0 = __smlad(d, words[5], d0);
        s1 = __smlad(s, words[6], s1);
        d1 = __smlad(d, words[7], d1);
    }
#else
    for (const int8_t *end = a + taps; a < end; a++, b++, patch += 4) {
        const int32_t s = *a + *b, d = *a - *b;
        s0 += s * patch[0];
        d0 += d * patch[1];
        s1 += s * patch[2];
        d1 += d * patch[3];
    }
#endif
    sums[0] = (s0 + d0) / 2, sums[4] = (s0 - d0) / 2, sums[8] = (s1 + d1) / 2, sums[12] = (s1 - d1) / 2;
}

/* Outputs of filters a, b at the first position, and at the second, eight further. */
static void plain_sums(const int8_t *a, const int8_t *b, const patch_value *patch, int taps, int32_t *sums)
{
    int32_t a0 = 0, b0 = 0, a1 = 0, b1 = 0;
#if defined(KERNELS_DSP)
    const int32_t *words = (const int32_t *)(const void *)patch;
    for (const int8_t *end = a + taps; a < end; a += 4, b += 4, words += 4) {
        const int32_t aa = word(a), bb = word(b);
        a0 = __smlad(__sxtb16(aa), words[0], a0);
        a1 = __smlad(__sxtb16(aa), words[1], a1);
        b0 = __smlad(__sxtb16(bb), words[0], b0);
        b1 = __smlad(__sxtb16(bb), words[1], b1);
        a0 = __smlad(odd(aa), words[2], a0);
        a1 = __smlad(odd(aa), words[3], a1);
        b0 = __smlad(odd(bb), words[2], b0);
        b1 = __smlad(odd(bb), words[3], b1);
    }
#else
    for (const int8_t *end = a + taps; a < end; a++, b++, patch += 2) {
        a0 += *a * patch[0];
        a1 += *a * patch[1];
        b0 += *b * patch[0];
        b1 += *b * patch[1];
    }
#endif
    sums[0] = a0, sums[1] = b0, sums[8] = a1, sums[9] = b1;
}

{% endif %}
static void rescale(const int32_t *sums, const filters *layer, int filter, int count, int zero, int8_t *result)
{
    for (int i = 0; i < count; i++, filter++) {
        const int64_t product = (int64_t)((sums[i] + layer->bias[filter]) * layer->gain) * layer->multipliers[filter];
        result[i] = shifted((int32_t)(product >> 32), layer->shifts[filter], zero);
    }
}
#endif

{% if patches %}
/* A row of the output, from `values` of the input. */
static void convolve_row(const filters *layer, const map *from, const int8_t *values, int row, const map *to,
                         int8_t *result, int8_t *memory)
{
    const int inputs = from->channels / layer->groups, outputs = to->channels / layer->groups;
    const int stored = layer->mirrored ? outputs / 2 : outputs;
    const int taps = (layer->kernel * layer->kernel * (layer->mirrored ? inputs / 2 : inputs) + 3) / 4 * 4;
    int8_t *outside = memory + layer->scratch; /* values that stand for 0 */
    patch_value *patch = (patch_value *)(void *)(outside + (inputs + 7) / 8 * 8);
    int32_t sums[16] = {0}; /* of four filters, their mirror images, and both at the second position */
    memset(outside, from->zero, (size_t)inputs);

    for (int group = 0; group < layer->groups; group++, values += inputs, result += outputs)
        for (int column = 0; column < to->size; column += 2) {
            const int next = column + 1 < to->size ? column + 1 : column;
            int8_t *first = result + column * to->channels, *second = result + next * to->channels;
            gather(layer, from, values, outside, row, column, 0, taps, patch);
            gather(layer, from, values, outside, row, next, 1, taps, patch);
            for (int i = 0; i < stored; i += 4) {
                const int count = stored - i < 4 ? stored - i : 4, filter = group * stored + i;
                if (layer->mirrored) {
                    const int8_t *weights = layer->weights + 2 * filter * taps;
                    for (int k = 0; k < count; k++, weights += 2 * taps)
                        mirrored_sums(weights, weights + taps, patch, taps, sums + k);
                    rescale(sums + 4, layer, filter, count, to->zero, first + stored + i);
                    rescale(sums + 12, layer, filter, count, to->zero, second + stored + i);
                } else {
                    const int8_t *weights = layer->weights + filter * taps;
                    for (int k = 0; k < count; k += 2, weights += 2 * taps)
                        plain_sums(weights, k + 1 < count ? weights + taps : weights, patch, taps, sums + k);
                }
                rescale(sums, layer, filter, count, to->zero, first + i);
                rescale(sums + 8, layer, filter, count, to->zero, second + i);
            }
        }
}

{% if "convolve" in used %}
static void convolve(const filters *layer, const map *from, const map *to, int8_t *memory)
{
    int8_t *result = memory + to->offset;
    for (int row = 0; row < to->size; row++, result += to->size * to->channels)
        convolve_row(layer, from, memory + from->offset, row, to, result, memory);
}
{% endif %}
{% endif %}
{% if depthwise %}

/* Four outputs of a depthwise convolution, of neighbouring channels; the values of its taps lie at `offsets`. */
static void depthwise_sums(const int8_t *weights, const int8_t *values, const uint32_t *offsets, int taps, int32_t *sums)
{
#if defined(KERNELS_MVE)
    int32x4_t total = vdupq_n_s32(0);
    for (int tap = 0; tap < taps; tap++, weights += 4)
        total = vaddq_s32(total, vmulq_s32(vldrbq_s32(values + offsets[tap]), vldrbq_s32(weights)));
    vstrwq_s32(sums, total);
#else
    int32_t s0 = 0, s1 = 0, s2 = 0, s3 = 0;
    for (const uint32_t *end = offsets + taps; offsets < end; offsets++, weights += 4) {
        const int8_t *v = values + *offsets;
#if defined(KERNELS_DSP)
        const int32_t vv = word(v), ww = word(weights);
        s0 = __smlabb(__sxtb16(vv), __sxtb16(ww), s0);
        s2 = __smlatt(__sxtb16(vv), __sxtb16(ww), s2);
        s1 = __smlabb(odd(vv), odd(ww), s1);
        s3 = __smlatt(odd(vv), odd(ww), s3);
#else
        s0 += v[0] * weights[0];
        s1 += v[1] * weights[1];
        s2 += v[2] * weights[2];
        s3 += v[3] * weights[3];
#endif
    }
    sums[0] = s0, sums[1] = s1, sums[2] = s2, sums[3] = s3;
#endif
}

/* One filter for each channel. Four channels are computed at once; where there are less, what is read behind them counts
 * nothing. Of mirrored filters the second half of the channels has those of the first, flipped from left to right. */
static void depthwise_row(const filters *layer, const map *from, int row, const map *to, int8_t *result, int8_t *memory)
{
    const int channels = to->channels, stored = layer->mirrored ? channels / 2 : channels;
    const int kernel = layer->kernel, taps = kernel * kernel;
    int8_t *outside = memory + layer->scratch; /* values that stand for 0 */
    uint32_t *offsets = (uint32_t *)(void *)(outside + (channels + 7) / 8 * 8), *flipped = offsets + taps;
    int32_t sums[4];
    memset(outside, from->zero, (size_t)channels);

    for (int column = 0; column < to->size; column++, result += channels) {
        for (int i = 0; i < kernel; i++)
            for (int j = 0; j < kernel; j++) {
                const int y = row * layer->stride - layer->padding + i * layer->dilation;
                const int x = column * layer->stride - layer->padding + j * layer->dilation;
                const int8_t *values = values_at(from, memory + from->offset, outside, y, x);
                offsets[i * kernel + j] = flipped[(i + 1) * kernel - 1 - j] = (uint32_t)(values - memory);
            }
        for (int start = 0; start < channels; start += stored) {
            const int8_t *weights = layer->weights;
            for (int i = 0; i < stored; i += 4, weights += 4 * taps) {
                depthwise_sums(weights, memory + start + i, start ? flipped : offsets, taps, sums);
                rescale(sums, layer, i, stored - i < 4 ? stored - i : 4, to->zero, result + start + i);
            }
        }
    }
}

{% if "depthwise" in used %}
static void depthwise(const filters *layer, const map *from, const map *to, int8_t *memory)
{
    int8_t *result = memory + to->offset;
    for (int row = 0; row < to->size; row++, result += to->size * to->channels)
        depthwise_row(layer, from, row, to, result, memory);
}
{% endif %}
{% endif %}
