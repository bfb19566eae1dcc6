/* {{ prefix }} for {{ network.pixels.size }}x{{ network.pixels.size }} pictures in C99, int8 weights; written by tinycifar.
 *
 * Constants {{ "{:,}".format(network.constant_bytes) }} bytes, of these weights {{ "{:,}".format(network.weight_bytes) }}; working memory {{ "{:,}".format(network.memory_bytes) }} bytes. No allocation, no library.
 */
#ifndef {{ prefix | upper }}_H
#define {{ prefix | upper }}_H

#include <stdint.h>

#define {{ prefix | upper }}_CLASSES {{ classes | length }}
#define {{ prefix | upper }}_MEMORY_BYTES {{ network.memory_bytes }}
{% if network.about.temperature != "null" %}
#define {{ prefix | upper }}_TEMPERATURE {{ network.about.temperature }}f /* divide logits by it before softmax */
{% endif %}

extern const char *const {{ prefix }}_class_names[{{ prefix | upper }}_CLASSES];

/* The most probable class of a picture, as an index of {{ prefix }}_class_names.
 *
 * pixels: {{ network.pixels.size }} * {{ network.pixels.size }} * 3 bytes, red, green and blue of each pixel, row by row.
 * memory: {{ prefix | upper }}_MEMORY_BYTES bytes, whatever they hold; not used after the call.
 * logits: receives {{ prefix | upper }}_CLASSES values.
 */
int {{ prefix }}_classify(const uint8_t *pixels, uint8_t *memory, float *logits);

#endif
