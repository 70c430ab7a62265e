#include "../simd/avx2.h"
#include "walk.inl"
