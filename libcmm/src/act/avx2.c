#include "../simd/avx2.h"
#include "loops.inl"
