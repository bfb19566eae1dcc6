/* A convolution gathers what its filters see at two neighbouring positions, a patch, and multiplies it by one filter
 * after the other. Mirrored filters come in pairs, and half of the multiplications give both: with the inputs p of the
 * first half of the channels, q of the second, flipped from left to right as their weights b are, and weights a of p,
 *     s = sum (a + b) * (p + q)    d = sum (a - b) * (p - q)
 * are the sum and the difference of the outputs sum a * p + b * q and sum a * q + b * p. */

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

/* The values of a map at a position, from the group's first channel on; outside of the map those of `outside`. */
static const int8_t *values_at(const map *from, const int8_t *values, const int8_t *outside, int y, int x)
{
    if (y < 0 || y >= from->size || x < 0 || x >= from->size)
        return outside;
    return values + (y * from->size + x) * from->channels;
}

static void gather(const filters *layer, const map *from, const int8_t *values, const int8_t *outside, int row,
                   int column, int position, int16_t *patch)
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
    for (; tap % 4; tap++) /* where weights are filled up */
        if (layer->mirrored) {
            patch[place(tap, 4, 2 * position)] = 0;
            patch[place(tap, 4, 2 * position + 1)] = 0;
        } else
            patch[place(tap, 2, position)] = 0;
}

/* s and d of both positions, for filters a, b of that many taps. */
static void mirrored_sums(const int8_t *a, const int8_t *b, const int16_t *patch, int taps, int32_t *sums)
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
    sums[0] = s0, sums[1] = d0, sums[2] = s1, sums[3] = d1;
}

/* Outputs of filters a, b at the first position, and at the second. */
static void plain_sums(const int8_t *a, const int8_t *b, const int16_t *patch, int taps, int32_t *sums)
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
    sums[0] = a0, sums[1] = b0, sums[2] = a1, sums[3] = b1;
}

static void convolve(const filters *layer, const map *from, const map *to, int8_t *memory)
{
    const int inputs = from->channels / layer->groups, outputs = to->channels / layer->groups;
    const int taps = (layer->kernel * layer->kernel * (layer->mirrored ? inputs / 2 : inputs) + 3) / 4 * 4;
    int8_t *outside = memory + layer->scratch; /* values that stand for 0 */
    int16_t *patch = (int16_t *)(void *)(outside + (inputs + 7) / 8 * 8);
    int32_t sums[4];
    memset(outside, from->zero, (size_t)inputs);

    for (int group = 0; group < layer->groups; group++)
        for (int row = 0; row < to->size; row++)
            for (int column = 0; column < to->size; column += 2) {
                const int next = column + 1 < to->size ? column + 1 : column;
                const int8_t *values = memory + from->offset + group * inputs;
                int8_t *first = memory + to->offset + (row * to->size + column) * to->channels + group * outputs;
                int8_t *second = first + (next - column) * to->channels;
                gather(layer, from, values, outside, row, column, 0, patch);
                gather(layer, from, values, outside, row, next, 1, patch);
                if (layer->mirrored)
                    for (int i = 0; i < outputs / 2; i++) {
                        const int8_t *weights = layer->weights + 2 * i * taps;
                        const int32_t bias = layer->bias[i];
                        mirrored_sums(weights, weights + taps, patch, taps, sums);
                        first[i] = rescaled((sums[0] + sums[1]) / 2 + bias, layer, i, to->zero);
                        first[i + outputs / 2] = rescaled((sums[0] - sums[1]) / 2 + bias, layer, i, to->zero);
                        second[i] = rescaled((sums[2] + sums[3]) / 2 + bias, layer, i, to->zero);
                        second[i + outputs / 2] = rescaled((sums[2] - sums[3]) / 2 + bias, layer, i, to->zero);
                    }
                else
                    for (int i = 0; i < outputs; i += 2) {
                        const int a = group * outputs + i, b = i + 1 < outputs ? a + 1 : a;
                        plain_sums(layer->weights + a * taps, layer->weights + b * taps, patch, taps, sums);
                        first[i] = rescaled(sums[0] + layer->bias[a], layer, a, to->zero);
                        first[i + b - a] = rescaled(sums[1] + layer->bias[b], layer, b, to->zero);
                        second[i] = rescaled(sums[2] + layer->bias[a], layer, a, to->zero);
                        second[i + b - a] = rescaled(sums[3] + layer->bias[b], layer, b, to->zero);
                    }
            }
}
