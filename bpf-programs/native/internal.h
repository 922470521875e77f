/* What the two halves of the runtime share. */
#ifndef WARREN_NATIVE_INTERNAL_H
#define WARREN_NATIVE_INTERNAL_H

#define WARREN_NATIVE 1
#include "runtime.h"

#include <warren.h>

struct warren_native {
    struct warren_native_input input;
    struct warren_request request;
    u8 *heap;
    u64 heap_size;
    u8 *output;
    u64 output_size;
    u64 output_limit;
    u8 *appended;
    u64 appended_size;
    u8 *call; /* struct flfs_call and what follows, built when asked for */
};

extern _Thread_local struct warren_native *warren_native_current;

#endif
