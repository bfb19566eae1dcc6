/* A plugin for QEMU 7 and 8 that counts executed instructions between two addresses.
 *
 *     -plugin count.so,first=ADDRESS,last=ADDRESS,counts=PATH
 *
 * Each time that `last` is reached after `first`, a line of the file receives the number of instructions between them.
 * Debian ships the interface without its header, so the declarations are here; they follow QEMU's documentation.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, void (*)(qemu_plugin_id_t, void *), void *);
void qemu_plugin_register_vcpu_insn_exec_inline(struct qemu_plugin_insn *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *, void (*)(unsigned, void *),
                                            enum qemu_plugin_cb_flags, void *);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);

EXPORTED int qemu_plugin_version = 1;

static uint64_t total, total_at_first, addresses[2];
static bool running;
static FILE *file;

static void at_first(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    total_at_first = total;
    running = true;
}

static void at_last(unsigned cpu, void *data)
{
    (void)cpu, (void)data;
    if (running)
        fprintf(file, "%" PRIu64 "\n", total - total_at_first);
    running = false;
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        const uint64_t address = qemu_plugin_insn_vaddr(instruction);
        if (address == addresses[0])
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, at_first, QEMU_PLUGIN_CB_NO_REGS, NULL);
        if (address == addresses[1])
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, at_last, QEMU_PLUGIN_CB_NO_REGS, NULL);
        qemu_plugin_register_vcpu_insn_exec_inline(instruction, QEMU_PLUGIN_INLINE_ADD_U64, &total, 1);
    }
}

static void finished(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    fclose(file);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int count, char **arguments)
{
    (void)info;
    for (int i = 0; i < count; i++)
        if (!strncmp(arguments[i], "first=", 6))
            addresses[0] = strtoull(arguments[i] + 6, NULL, 0);
        else if (!strncmp(arguments[i], "last=", 5))
            addresses[1] = strtoull(arguments[i] + 5, NULL, 0);
        else if (!strncmp(arguments[i], "counts=", 7))
            file = fopen(arguments[i] + 7, "w");
    if (!file) {
        fprintf(stderr, "count: counts=PATH is missing or cannot be written\n");
        return -1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_atexit_cb(id, finished, NULL);
    return 0;
}
