#include "../simd/avx512.h"
#include "forest.inl"
