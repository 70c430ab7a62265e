#include "../simd/avx2.h"
#include "forest.inl"
