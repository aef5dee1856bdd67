// Attention of all heads and images, by several threads.

#include "attention.h"
#include "bands.h"

extern "C" {

int usable() { return allowed(); }

// `joined` (batch, tokens, 3, heads, width) holds queries, keys and values without their bias;
// `mixed` is (batch, tokens, heads, width), `totals` (batch, heads, tokens).
void attend(const Value* joined, const float* bias, Value* mixed, float* totals, long batch,
            long tokens, long heads, long width, int threads) {
    const Heads shape{tokens, heads, width};
    const long image = tokens * shape.channels();
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(shape.forward_room());
        const Tiles tiles;
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long h = 0; h < heads; h++)
                attend_head(shape, joined + 3 * b * image + h * width, bias + h * width,
                            mixed + b * image + h * width, totals + (b * heads + h) * tokens,
                            scratch);
    }
}

// The gradient of `joined`, and summed over images and tokens that of the bias.
void attend_backward(const Value* joined, const float* bias, const Value* mixed,
                     const float* totals, const Value* grad, Value* djoined, float* dbias,
                     long batch, long tokens, long heads, long width, int threads) {
    const Heads shape{tokens, heads, width};
    const long channels = shape.channels(), image = tokens * channels;
    ColumnSums biases(batch, 3 * channels);
#pragma omp parallel num_threads(threads)
    {
        const Scratch scratch(shape.backward_room());
        const Tiles tiles;
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < batch; b++)
            for (long h = 0; h < heads; h++) {
                const long at = b * image + h * width, joint = 3 * b * image + h * width;
                attend_backward_head(shape, joined + joint, bias + h * width, mixed + at,
                                     totals + (b * heads + h) * tokens, grad + at,
                                     djoined + joint, biases.of(b) + h * width,
                                     scratch);
            }
    }
    biases.add_up(dbias);
}

}  // extern "C"
