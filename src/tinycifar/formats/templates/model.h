/* {{ prefix }}: {{ size }}x{{ size }} images, int8 weights, integer arithmetic; C99, C11 and C++17. Written by tinycifar.
 *
 * Constants {{ "{:,}".format(constant_bytes) }} bytes, {{ "{:,}".format(weight_bytes) }} of them weights; working memory {{ "{:,}".format(memory_bytes) }} bytes. No allocation. Of
 * libraries it needs memcpy and memset, and on cores without a 64-bit product or floating point the compiler's own.
 */
#ifndef {{ prefix | upper }}_H
#define {{ prefix | upper }}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define {{ prefix | upper }}_CLASSES {{ classes | length }}
#define {{ prefix | upper }}_IMAGE_SIZE {{ size }}
#define {{ prefix | upper }}_CHANNELS {{ table | length }} /* {{ "red, green and blue" if table | length == 3 else "grey: 0.299 red + 0.587 green + 0.114 blue" if table | length == 1 else "of each pixel" }} */
#define {{ prefix | upper }}_FIT "{{ fit }}" /* {{ fit_words }} */
#define {{ prefix | upper }}_MEMORY_BYTES {{ memory_bytes }}
#define {{ prefix | upper }}_SCORE_SCALE {{ head.scale | c_float }} /* a logit is a score times this */
{% if temperature != "null" %}
#define {{ prefix | upper }}_TEMPERATURE {{ temperature | c_float }} /* divide logits by it before softmax */
{% endif %}
{% for percent, limit in kept %}
#define {{ prefix | upper }}_KEEP_{{ percent }} {{ limit | c_float }} /* none of these if the largest logit less their mean is below: keeps {{ percent }}% of right answers */
{% endfor %}

extern const char *const {{ prefix }}_class_names[{{ prefix | upper }}_CLASSES];

/* The most probable class of an image, as an index of {{ prefix }}_class_names.
 *
 * pixels: {{ size }} * {{ size }} * {{ table | length }} bytes, {{ "red, green and blue of each pixel" if table | length == 3 else "one of each pixel" }}, row by row.
 * memory: {{ prefix | upper }}_MEMORY_BYTES bytes at any address, whatever they hold; not used after the call.
 * logits: receives {{ prefix | upper }}_CLASSES values.
 */
int {{ prefix }}_classify(const uint8_t *pixels, uint8_t *memory, float *logits);

/* As {{ prefix }}_classify, without floating point: logits are scores times {{ prefix | upper }}_SCORE_SCALE. */
int {{ prefix }}_scores(const uint8_t *pixels, uint8_t *memory, int32_t *scores);

#ifdef __cplusplus
}
#endif

#endif
