/* Classifies one image, with integers only: scores are logits without their scale. */
#include "image.h"
#include "nano.h"

void put(const char *text);

static uint8_t memory[NANO_MEMORY_BYTES];

int main(void)
{
    int32_t scores[NANO_CLASSES];
    put(nano_class_names[nano_scores(image, memory, scores)]);
    put("\n");
    return 0;
}
