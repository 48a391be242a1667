// A policy: machines that answer and have a free slot first, and of those the fastest.

#include <stdlib.h>
#include <string.h>

#include "plugin.h"

typedef exports_hookrun_builder_selection_builder_selection_machine_t machine_t;

static bool has_free_slot(const machine_t *machine) { return machine->load < machine->slots; }

// Returns a negative number if `one` is the better machine.
static int compare(const void *one_pointer, const void *other_pointer) {
    const machine_t *one = one_pointer, *other = other_pointer;
    if (one->healthy != other->healthy) return one->healthy ? -1 : 1;
    if (has_free_slot(one) != has_free_slot(other)) return has_free_slot(one) ? -1 : 1;
    if (one->speed_factor != other->speed_factor)
        return one->speed_factor > other->speed_factor ? -1 : 1;
    if (one->load != other->load) return one->load < other->load ? -1 : 1;
    // The order does not depend on that of the machines file.
    size_t length = one->uri.len < other->uri.len ? one->uri.len : other->uri.len;
    int order = memcmp(one->uri.ptr, other->uri.ptr, length);
    return order != 0 ? order : (one->uri.len > other->uri.len) - (one->uri.len < other->uri.len);
}

// What the arguments own is not freed: every run has an instance of its own.
bool exports_hookrun_builder_selection_builder_selection_select(
    exports_hookrun_builder_selection_builder_selection_candidate_t *candidate,
    exports_hookrun_builder_selection_builder_selection_list_machine_t *machines,
    exports_hookrun_builder_selection_builder_selection_local_machine_t *local,
    exports_hookrun_builder_selection_builder_selection_decision_t *decision,
    plugin_string_t *error) {
    (void)candidate;
    (void)local;
    (void)error;
    memset(decision, 0, sizeof *decision);
    if (machines->len == 0) {
        plugin_string_dup(&decision->action, "decline");
        plugin_string_dup(&decision->reason, "no machine can build this");
        return true;
    }
    qsort(machines->ptr, machines->len, sizeof(machine_t), compare);
    decision->machines.ptr = malloc(machines->len * sizeof(plugin_string_t));
    if (decision->machines.ptr == NULL) {
        plugin_string_dup(error, "out of memory");
        return false;
    }
    decision->machines.len = machines->len;
    for (size_t i = 0; i < machines->len; i++) decision->machines.ptr[i] = machines->ptr[i].uri;
    plugin_string_dup(&decision->action, "machines");
    plugin_string_dup(&decision->reason, "the fastest machine with a free slot is first");
    return true;
}
