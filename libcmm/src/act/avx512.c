#include "../simd/avx512.h"
#include "loops.inl"
