// Products of small matrices inside one thread. `Left` and `Right` are what a product wants its
// factors as; sums are in float32. Where activations are in bfloat16 and the processor multiplies
// pairs of them, factors are rounded to it again, and matrix units (AMX) are used if there are any.

#pragma once

#include "matrix.h"

#if defined(MATRIX_UNITS)
#include "matrix_units.h"
#else
#include "registers.h"
#endif
