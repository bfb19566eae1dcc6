/* Classify pictures from standard input, 32 * 32 * 3 bytes of RGB each: prints a class for each.
 *
 *     tinycifar export minute --format c --out .
 *     cc -std=c99 -O2 -o classify main.c minute.c
 */
#include <stdio.h>

#include "minute.h"

int main(void)
{
    static uint8_t pixels[32 * 32 * 3], memory[MINUTE_MEMORY_BYTES];
    float logits[MINUTE_CLASSES];

    while (fread(pixels, sizeof pixels, 1, stdin) == 1)
        printf("%s\n", minute_class_names[minute_classify(pixels, memory, logits)]);
    return 0;
}
