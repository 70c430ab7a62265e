#include "../simd/scalar.h"
#include "group.inl"
