#include "../simd/scalar.h"
#include "walk.inl"
