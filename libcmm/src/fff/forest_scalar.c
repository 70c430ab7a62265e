#include "../simd/scalar.h"
#include "forest.inl"
