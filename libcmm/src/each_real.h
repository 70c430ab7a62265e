/* Compile the body of a kernel file twice, for float and for double.
 *
 * A kernel file defines CMM_BODY as its own name and includes this file. This file includes it back twice with REAL
 * defined, and the names below meaning one type; the file puts its body under #ifdef REAL. */
#define REAL float
#define NAME(x) x##_f32
#define BLAS(x) s##x
#include CMM_BODY
#undef REAL
#undef NAME
#undef BLAS
#define REAL double
#define NAME(x) x##_f64
#define BLAS(x) d##x
#include CMM_BODY
#undef REAL
#undef NAME
#undef BLAS
