/* {{ prefix }}: {{ size }}x{{ size }} images, int8 weights, integer arithmetic; C99, C11 and C++17. Written by tinycifar. */
#include "{{ prefix }}.h"

#include <string.h>

/* Kernels are chosen by the compiler's own macros; all of them give the same bits. */
{% if "conv" in kinds %}
#if defined(__ARM_FEATURE_MVE)
#define KERNELS_MVE 1
#include <arm_mve.h>
#elif defined(__ARM_FEATURE_DSP) && !defined(__ARM_BIG_ENDIAN)
#define KERNELS_DSP 1
#include <arm_acle.h>
#endif
{% endif %}

/* A feature map of int8 values by row, column, channel; value v stands for a multiple of v - zero. */
typedef struct {
    uint32_t offset; /* in memory, in bytes */
    int channels, size, zero;
} map;

{% if "conv" in kinds %}
/* Filters by output, row, column, input, each filled up with zeros to a multiple of four weights. Of mirrored filters
 * the second half is stored nowhere: filter n + count / 2 is filter n flipped from left to right, with the two halves of
 * its inputs exchanged. They are stored as the weights of the first half of the inputs, and then those of the second
 * half, flipped from left to right. Filters of a depthwise convolution lie by four outputs, row, column, output. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias;        /* per stored filter */
    const int32_t *multipliers; /* per stored filter: a sum becomes sum * gain * multiplier / 2^(32 + shift) */
    const uint8_t *shifts;
    int32_t gain;
    int kernel, stride, padding, dilation, groups, mirrored;
    uint32_t scratch; /* in memory, in bytes */
} filters;

{% endif %}
{% if blocks %}
/* A separable block; the multipliers and the shift are those of its addition. */
typedef struct {
    const filters *depthwise, *mixing;
    uint32_t results; /* in memory, in bytes */
    int delay;
    int32_t product_multiplier, input_multiplier;
    int shift;
} block;

{% endif %}
static const int8_t pixel_values[{{ table | length }}][256] = {
{% for row in table %}
    {
{{ row | values }}
    },
{% endfor %}
};

{% for layer in layers %}
static const int8_t weights_{{ loop.index0 }}[{{ layer.weights.size }}] = {
{{ layer.weights | values }}
};
static const int32_t bias_{{ loop.index0 }}[{{ layer.bias.size }}] = {
{{ layer.bias | values }}
};
static const int32_t multipliers_{{ loop.index0 }}[{{ layer.multipliers.size }}] = {
{{ layer.multipliers | values }}
};
static const uint8_t shifts_{{ loop.index0 }}[{{ layer.shifts.size }}] = {
{{ layer.shifts | values }}
};

{% endfor %}
static const int16_t head_weights[{{ head.weights.size }}] = {
{{ head.weights | values }}
};
static const int32_t head_bias[{{ head.bias.size }}] = {
{{ head.bias | values }}
};

const char *const {{ prefix }}_class_names[{{ prefix | upper }}_CLASSES] = {
{% for name in classes %}
    {{ name | c_string }},
{% endfor %}
};

{% if "conv" in kinds or "add" in kinds %}
/* (value + 2^(shift - 1)) >> shift, plus zero, within int8. The right shift of a negative value must be arithmetic, as it is
 * with every compiler for a microcontroller. */
static inline int8_t shifted(int32_t value, int shift, int zero)
{
    value = ((value + ((int32_t)1 << (shift - 1))) >> shift) + zero;
    return (int8_t)(value < -128 ? -128 : value > 127 ? 127 : value);
}

{% endif %}
{% if "conv" in kinds %}
{% include "kernels.c" %}

{% endif %}
{% if "pool" in kinds %}
/* Two rows of `line` bytes become one of `to`. */
static void pool_rows(const int8_t *rows, int line, const map *to, int8_t *result)
{
    for (int column = 0; column < to->size; column++, rows += to->channels)
        for (int channel = 0; channel < to->channels; channel++, rows++) {
            int8_t most = rows[0];
            if (rows[to->channels] > most)
                most = rows[to->channels];
            if (rows[line] > most)
                most = rows[line];
            if (rows[line + to->channels] > most)
                most = rows[line + to->channels];
            *result++ = most;
        }
}

{% endif %}
{% if "pool" in used %}
static void pool(const map *from, const map *to, int8_t *memory)
{
    const int line = from->size * from->channels;
    for (int row = 0; row < to->size; row++)
        pool_rows(memory + from->offset + 2 * row * line, line, to,
                  memory + to->offset + row * to->size * to->channels);
}

{% endif %}
{% if "add" in kinds %}
/* The multipliers are of 2^-shift. */
static void add_values(const int8_t *first, int first_zero, int32_t first_multiplier, const int8_t *second,
                       int second_zero, int32_t second_multiplier, int shift, int zero, int count, int8_t *result)
{
    for (int i = 0; i < count; i++)
        result[i] = shifted(first_multiplier * (first[i] - first_zero) + second_multiplier * (second[i] - second_zero),
                            shift, zero);
}

{% endif %}
{% if "add" in used %}
static void add(const map *first, int32_t first_multiplier, const map *second, int32_t second_multiplier, int shift,
                const map *to, int8_t *memory)
{
    add_values(memory + first->offset, first->zero, first_multiplier, memory + second->offset, second->zero,
               second_multiplier, shift, to->zero, to->size * to->size * to->channels, memory + to->offset);
}

{% endif %}
{% if blocks %}
/* A depthwise convolution to `between`, pooling to `reduced` unless this is the same map, a 1x1 convolution to `mixed`
 * and, if its shift is not 0, an addition of the input. All is done for a row of the output at a time, so only rows of
 * the maps between are in memory. A row stays in `results` until `delay` more are computed, as the output may overwrite
 * the input. */
static void separable(const block *steps, const map *from, const map *between, const map *reduced, const map *mixed,
                      const map *to, int8_t *memory)
{
    const int length = to->size * to->channels, kept = steps->delay + 1;
    int8_t *rows = memory + between->offset, *results = memory + steps->results;
    for (int row = 0; row < to->size + steps->delay; row++) {
        if (row < to->size) {
            int8_t *result = results + row % kept * length;
{% if "pool" in kinds %}
            if (reduced != between) {
                const int line = between->size * between->channels;
                depthwise_row(steps->depthwise, from, 2 * row, between, rows, memory);
                depthwise_row(steps->depthwise, from, 2 * row + 1, between, rows + line, memory);
                pool_rows(rows, line, reduced, rows);
            } else
{% endif %}
                depthwise_row(steps->depthwise, from, row, between, rows, memory);
            convolve_row(steps->mixing, reduced, rows, 0, mixed, result, memory);
{% if "add" in kinds %}
            if (steps->shift)
                add_values(result, mixed->zero, steps->product_multiplier, memory + from->offset + row * length,
                           from->zero, steps->input_multiplier, steps->shift, to->zero, length, result);
{% endif %}
        }
        if (row >= steps->delay)
            memcpy(memory + to->offset + (row - steps->delay) * length, results + (row - steps->delay) % kept * length,
                   (size_t)length);
    }
}

{% endif %}
/* Global average pooling and the linear layer. */
static int classify(const map *features, const int8_t *memory, int32_t *sums, int32_t *scores)
{
    const int positions = features->size * features->size;
    int best = 0;
    for (int channel = 0; channel < features->channels; channel++) {
        const int8_t *values = memory + features->offset + channel;
        sums[channel] = -positions * features->zero;
        for (int i = 0; i < positions; i++)
            sums[channel] += values[i * features->channels];
    }
    for (int output = 0; output < {{ prefix | upper }}_CLASSES; output++) {
        const int16_t *weights = head_weights + output * features->channels;
        int32_t score = head_bias[output];
        for (int channel = 0; channel < features->channels; channel++)
            score += weights[channel] * sums[channel];
        scores[output] = score;
        if (score > scores[best])
            best = output;
    }
    return best;
}

/* The part of the caller's memory that is aligned to 8 bytes. */
static int8_t *aligned(uint8_t *memory)
{
    return (int8_t *)(memory + ((8u - ((uintptr_t)memory & 7u)) & 7u));
}

{% macro map(item) -%}
{ {{ item.offset }}, {{ item.channels }}, {{ item.size }}, {{ item.zero }} }
{%- endmacro %}
int {{ prefix }}_scores(const uint8_t *pixels, uint8_t *memory, int32_t *scores)
{
    static const map maps[] = {
{% for item in maps %}
        {{ map(item) }},
{% endfor %}
    };
{% for layer in layers %}
    static const filters conv_{{ loop.index0 }} = {
        weights_{{ loop.index0 }}, bias_{{ loop.index0 }}, multipliers_{{ loop.index0 }}, shifts_{{ loop.index0 }}, {{ layer.gain }}, {{ layer.step.kernel }}, {{ layer.step.stride }}, {{ layer.step.padding }}, {{ layer.step.dilation }}, {{ layer.step.groups }}, {{ layer.step.mirrored | int }}, {{ layer.scratch }},
    };
{% endfor %}
{% for block in blocks %}
    static const block block_{{ loop.index0 }} = {
        &conv_{{ block.layers[0] }}, &conv_{{ block.layers[1] }}, {{ block.results }}, {{ block.delay }}, {{ block.product }}, {{ block.added }}, {{ block.shift }},
    };
{% endfor %}
    int8_t *start = aligned(memory);

    for (int i = 0; i < {{ size * size }}; i++)
        for (int channel = 0; channel < {{ table | length }}; channel++)
            start[maps[0].offset + (uint32_t)(i * {{ table | length }} + channel)] = pixel_values[channel][*pixels++];
{% for call in calls %}
    {{ call }}
{% endfor %}
    return classify(&maps[{{ features }}], start, (int32_t *)(void *)(start + {{ sums_offset }}), scores);
}

int {{ prefix }}_classify(const uint8_t *pixels, uint8_t *memory, float *logits)
{
    int32_t *scores = (int32_t *)(void *)(aligned(memory) + {{ scores_offset }});
    const int best = {{ prefix }}_scores(pixels, memory, scores);
    for (int output = 0; output < {{ prefix | upper }}_CLASSES; output++)
        logits[output] = (float)scores[output] * {{ prefix | upper }}_SCORE_SCALE;
    return best;
}
