/* Start-up for Cortex-M and RISC-V boards under QEMU, and output by semihosting. */
#include <stdint.h>

#include "board.h"

extern uint32_t data_start, data_end, data_load, bss_start, bss_end, stack_top;

int main(void);

static int semihosting(int operation, const void *argument)
{
#if defined(__riscv)
    register int a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    __asm__ volatile(".option push\n.option norvc\n.balign 16\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
#else
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
#endif
}

void put(const char *text)
{
    semihosting(0x04, text); /* SYS_WRITE0 */
}

static void stop(int failed)
{
    for (;;) /* SYS_EXIT: ADP_Stopped_ApplicationExit, or ADP_Stopped_RunTimeErrorUnknown */
        semihosting(0x18, (const void *)(failed ? 0x20023 : 0x20026));
}

/* What is called first, with a stack. */
__attribute__((used, noreturn)) static void start(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: floating point and vectors */
    __asm__ volatile("dsb\nisb");
#endif
    for (uint32_t *to = &data_start, *from = &data_load; to < &data_end;)
        *to++ = *from++;
    for (uint32_t *to = &bss_start; to < &bss_end;)
        *to++ = 0;
    stop(main());
    for (;;)
        ;
}

#if defined(__riscv)
__asm__(".section .vectors, \"ax\"\n"
        ".option push\n.option norelax\n.option arch, +zicsr\nla gp, __global_pointer$\n"
        "la sp, stack_top\nla t0, trap\ncsrw mtvec, t0\n.option pop\nj start\n.text\n");
__attribute__((used, aligned(4))) static void trap(void)
#else
static void trap(void)
#endif
{
    put("a fault of the processor\n");
    stop(1);
}

#if !defined(__riscv)
__attribute__((section(".vectors"), used)) static void *const vectors[16] = {
    &stack_top, (void *)start, (void *)trap, (void *)trap, (void *)trap, (void *)trap, (void *)trap, 0, 0, 0, 0,
    (void *)trap, (void *)trap, 0, (void *)trap, (void *)trap,
};
#endif
