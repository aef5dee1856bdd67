// How activations are stored and what is computed of them. Compiled with -DBFLOAT16 they are in
// bfloat16, else in float32; arithmetic is in float32.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

#ifdef BFLOAT16
using Value = uint16_t;

inline float read(Value bits) {
    uint32_t word = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

inline void write(Value& place, float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    place = (word + 0x7fff + ((word >> 16) & 1)) >> 16;  // to nearest even
}
#else
using Value = float;

inline float read(Value value) { return value; }

inline void write(Value& place, float value) { place = value; }
#endif

// e^x for x < 88, within 2 units in the last place; 0 comes out as 1e-38.
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;  // NaN stays NaN
    const float magic = 12582912.0f;  // 1.5 * 2^23: its last bits are those of the power of 2
    float shifted = x * 1.44269504f + magic, power = shifted - magic;
    float rest = x - power * 0.693359375f + power * 2.12194440e-4f;
    float result = 1.0f / 720;
    result = result * rest + 1.0f / 120;
    result = result * rest + 1.0f / 24;
    result = result * rest + 1.0f / 6;
    result = result * rest + 0.5f;
    result = result * rest + 1.0f;
    result = result * rest + 1.0f;
    uint32_t exponent, bits;
    std::memcpy(&exponent, &shifted, 4);
    std::memcpy(&bits, &result, 4);
    bits += exponent << 23;
    std::memcpy(&result, &bits, 4);
    return result;
}

}  // namespace
