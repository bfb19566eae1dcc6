/* {{ prefix }} for {{ network.pixels.size }}x{{ network.pixels.size }} pictures in C99, int8 weights; written by tinycifar. */
#include "{{ prefix }}.h"

/* Feature maps are uint8, by row, column, channel; a value v stands for scale * (v - zero). */
typedef struct {
    uint32_t offset; /* in memory */
    int channels, size;
    float scale;
    int zero;
} map;

/* Weights are by output, row, column, input. Where the second half of the filters is the mirror image of the first,
 * seen by the other half of the inputs, only the first is stored. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias;
    const float *scales;
    int kernel, stride, padding, dilation, groups, mirrored;
} filters;

static const uint8_t pixel_values[3][256] = {
{% for row in network.table %}
    {
{{ row | values }}
    },
{% endfor %}
};

{% for step in network.steps if step.kind == "conv" %}
static const int8_t weights_{{ loop.index0 }}[{{ step.weights.size }}] = {
{{ step.weights | values }}
};
static const int32_t bias_{{ loop.index0 }}[{{ step.bias.size }}] = {
{{ step.bias | values }}
};
static const float scales_{{ loop.index0 }}[{{ step.scales.size }}] = {
{{ step.scales | values }}
};

{% endfor %}
static const float head_weights[{{ network.head.size }}] = {
{{ network.head | values }}
};
static const float head_bias[{{ network.head_bias.size }}] = {
{{ network.head_bias | values }}
};

const char *const {{ prefix }}_class_names[{{ prefix | upper }}_CLASSES] = {
{% for name in classes %}
    {{ name | c_string }},
{% endfor %}
};

static uint8_t quantised(float value, int zero)
{
    value += (float)zero + 0.5f;
    return (uint8_t)(value <= 0.0f ? 0 : value >= 255.0f ? 255 : (int)value);
}

static int32_t dot(const uint8_t *values, int zero, const int8_t *weights, int count)
{
    int32_t sum = 0;
    for (int i = 0; i < count; i++)
        sum += (values[i] - zero) * weights[i];
    return sum;
}

static void convolve(const filters *of, const map *from, const map *to, uint8_t *memory)
{
    const int inputs = from->channels / of->groups, outputs = to->channels / of->groups;
    const int half = inputs / 2, stored = of->mirrored ? to->channels / 2 : to->channels;
    uint8_t *result = memory + to->offset;

    for (int row = 0; row < to->size; row++)
        for (int column = 0; column < to->size; column++)
            for (int output = 0; output < to->channels; output++) {
                const int mirrored = output >= stored;
                const int8_t *filter =
                    of->weights + (mirrored ? output - stored : output) * of->kernel * of->kernel * inputs;
                int32_t sum = of->bias[output];
                for (int i = 0; i < of->kernel; i++)
                    for (int j = 0; j < of->kernel; j++) {
                        const int y = row * of->stride - of->padding + i * of->dilation;
                        const int x = column * of->stride - of->padding + j * of->dilation;
                        if (y < 0 || y >= from->size || x < 0 || x >= from->size)
                            continue; /* what lies outside is 0 */
                        const uint8_t *values = memory + from->offset + (y * from->size + x) * from->channels
                                                + output / outputs * inputs;
                        const int8_t *weights = filter + (i * of->kernel + (mirrored ? of->kernel - 1 - j : j)) * inputs;
                        if (mirrored)
                            sum += dot(values, from->zero, weights + half, half)
                                   + dot(values + half, from->zero, weights, half);
                        else
                            sum += dot(values, from->zero, weights, inputs);
                    }
                *result++ = quantised((float)sum * of->scales[output], to->zero);
            }
}

{% if network.steps | selectattr("kind", "equalto", "pool") | list %}
static void pool(const map *from, const map *to, uint8_t *memory)
{
    const int line = from->size * from->channels;
    uint8_t *result = memory + to->offset;
    for (int row = 0; row < to->size; row++)
        for (int column = 0; column < to->size; column++)
            for (int channel = 0; channel < to->channels; channel++) {
                const uint8_t *values =
                    memory + from->offset + 2 * row * line + 2 * column * from->channels + channel;
                uint8_t most = values[0];
                if (values[from->channels] > most)
                    most = values[from->channels];
                if (values[line] > most)
                    most = values[line];
                if (values[line + from->channels] > most)
                    most = values[line + from->channels];
                *result++ = most;
            }
}

{% endif %}
{% if network.steps | selectattr("kind", "equalto", "add") | list %}
static void add(const map *one, const map *other, const map *to, uint8_t *memory)
{
    for (int i = 0; i < to->size * to->size * to->channels; i++) {
        const float sum = one->scale * (float)(memory[one->offset + i] - one->zero)
                          + other->scale * (float)(memory[other->offset + i] - other->zero);
        memory[to->offset + i] = quantised(sum / to->scale, to->zero);
    }
}

{% endif %}
static int classify(const map *features, const uint8_t *memory, float *logits)
{
    const int positions = features->size * features->size;
    int best = 0;
    for (int output = 0; output < {{ prefix | upper }}_CLASSES; output++) {
        logits[output] = head_bias[output];
        for (int channel = 0; channel < features->channels; channel++) {
            int32_t sum = 0;
            for (int i = 0; i < positions; i++)
                sum += memory[features->offset + i * features->channels + channel] - features->zero;
            logits[output] +=
                head_weights[output * features->channels + channel] * features->scale * (float)sum / (float)positions;
        }
        if (logits[output] > logits[best])
            best = output;
    }
    return best;
}

{% macro map(of) -%}
{ {{ of.offset }}, {{ of.channels }}, {{ of.size }}, {{ of.scale }}f, {{ of.zero }} }
{%- endmacro %}
int {{ prefix }}_classify(const uint8_t *pixels, uint8_t *memory, float *logits)
{
    static const map maps[] = {
        {{ map(network.pixels) }},
{% for step in network.steps %}
        {{ map(step.output) }},
{% endfor %}
    };
{% for step in network.steps if step.kind == "conv" %}
    static const filters conv_{{ loop.index0 }} = {
        weights_{{ loop.index0 }}, bias_{{ loop.index0 }}, scales_{{ loop.index0 }}, {{ step.kernel }}, {{ step.stride }}, {{ step.padding }}, {{ step.dilation }}, {{ step.groups }}, {{ step.mirrored | int }},
    };
{% endfor %}

    for (int i = 0; i < {{ network.pixels.size }} * {{ network.pixels.size }} * 3; i++)
        memory[maps[0].offset + i] = pixel_values[i % 3][pixels[i]];
{% set maps = [network.pixels] + network.steps | map(attribute="output") | list %}
{% set count = namespace(conv=0) %}
{% for step in network.steps %}
{% set to = loop.index %}
{% set from = maps.index(step.inputs[0]) %}
{% if step.kind == "conv" %}
    convolve(&conv_{{ count.conv }}, &maps[{{ from }}], &maps[{{ to }}], memory);
{% set count.conv = count.conv + 1 %}
{% elif step.kind == "pool" %}
    pool(&maps[{{ from }}], &maps[{{ to }}], memory);
{% else %}
    add(&maps[{{ from }}], &maps[{{ maps.index(step.inputs[1]) }}], &maps[{{ to }}], memory);
{% endif %}
{% endfor %}
    return classify(&maps[{{ maps.index(network.features) }}], memory, logits);
}
