// Products of small matrices inside one thread: on matrix units (AMX) where activations are in
// bfloat16 and the processor has them, else in registers. `Left` and `Right` are what a product
// wants its factors as; sums are in float32.

#pragma once

#include "matrix.h"

#if defined(MATRIX_UNITS)
#include "matrix_units.h"
#else
#include "registers.h"
#endif
