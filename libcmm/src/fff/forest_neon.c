#include "../simd/neon.h"
#include "forest.inl"
