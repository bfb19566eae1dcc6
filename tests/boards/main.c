/* Classifies the images of images.h. Prints, for each, its class and a hash of its logits; the same of the first
 * image's scores; and the stack. */
#include <string.h>

#include "board.h"
#include "images.h"
#include "model.h"

#define PAINT 0xA5A5A5A5u

extern uint32_t stack_limit, stack_top;

static uint8_t memory[MODEL_MEMORY_BYTES];
static int32_t scores[MODEL_CLASSES];
static float logits[MODEL_CLASSES];

static void put_number(uint32_t value)
{
    char text[12];
    int i = 11;
    text[i] = 0;
    do
        text[--i] = (char)('0' + value % 10);
    while (value /= 10);
    put(text + i);
    put(" ");
}

/* FNV-1a (Fowler, Noll, Vo) of 32 bits. */
static uint32_t hash(const void *bytes, size_t count)
{
    uint32_t value = 2166136261u;
    for (size_t i = 0; i < count; i++)
        value = (value ^ ((const uint8_t *)bytes)[i]) * 16777619u;
    return value;
}

/* The runner counts instructions from the first of MODEL_classify to this one. */
__attribute__((noinline)) void finished(void)
{
    __asm__ volatile("");
}

int main(void)
{
    uint32_t *free_stack = &stack_limit;
    for (uint32_t *here = (uint32_t *)__builtin_frame_address(0) - 32; free_stack < here; free_stack++)
        *free_stack = PAINT;
    for (int i = 0; i < IMAGES; i++) {
        const int class_index = MODEL_classify(images[i], memory, logits);
        finished();
        put_number((uint32_t)class_index);
        put_number(hash(logits, sizeof logits));
        put("\n");
    }
    put_number((uint32_t)MODEL_scores(images[0], memory, scores));
    put_number(hash(scores, sizeof scores));
    put("\n");
    for (free_stack = &stack_limit; free_stack < &stack_top && *free_stack == PAINT;)
        free_stack++;
    put("stack ");
    put_number((uint32_t)((const char *)&stack_top - (const char *)free_stack));
    put("\n");
    return 0;
}
