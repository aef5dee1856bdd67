// What a step does to all parameters of a model at once: the norm of their gradients, AdamW
// (Loshchilov and Hutter 2019, arXiv 1711.05101) on clipped gradients, and the weight average.

#include <cmath>

#include "bands.h"

namespace {

// `kernels.Parameter`: where the values of one are, and what changes them.
struct Parameter {
    float *weight, *gradient, *mean, *square, *average;
    long count;
    double factor;  // of the rate
    float decay;
};

// Calls `body(band, parameter, first, last)` for each stretch of values that a band has of one.
template <typename Body>
void over_values(const Parameter* parameters, long number, int threads, Body body) {
    long total = 0;
    for (long k = 0; k < number; k++) total += parameters[k].count;
    in_bands(total, threads, [=](long band, long first, long last) {
        long start = 0;  // of a parameter among all values
        for (long k = 0; k < number; start += parameters[k++].count) {
            const long from = std::max(first - start, 0l);
            const long to = std::min(last - start, parameters[k].count);
            if (from < to) body(band, parameters[k], from, to);
        }
    });
}

}  // namespace

extern "C" {

void gradient_norm(const Parameter* parameters, long number, float* norm, int threads) {
    double squares[BANDS] = {}, total = 0;
    over_values(parameters, number, threads,
                [&](long band, const Parameter& each, long first, long last) {
                    const float* gradient = each.gradient;
                    double sum = 0;
#pragma omp simd reduction(+ : sum)
                    for (long i = first; i < last; i++) sum += double(gradient[i]) * gradient[i];
                    squares[band] += sum;
                });
    for (double square : squares) total += square;
    *norm = std::sqrt(total);
}

// `base` is the rate before factors. Gradients are multiplied by `clip`; moments keep `beta1` and
// `beta2` of themselves and are divided by `bias1` and `bias2`; the average goes `moved` of the way
// to the weights.
void adamw(const Parameter* parameters, long number, double base, double clip, double beta1,
           double beta2, double epsilon, double bias1, double bias2, double moved, int threads) {
    const float kept1 = beta1, kept2 = beta2, new1 = 1 - beta1, new2 = 1 - beta2;
    const float factor = clip, root = 1 / std::sqrt(bias2), least = epsilon, way = moved;
    over_values(parameters, number, threads,
                [=](long, const Parameter& each, long first, long last) {
                    const float rate = base * each.factor;
                    const float step = rate / bias1, shrunk = 1 - rate * each.decay;
#pragma omp simd
                    for (long i = first; i < last; i++) {
                        const float gradient = factor * each.gradient[i];
                        const float mean = kept1 * each.mean[i] + new1 * gradient;
                        const float square = kept2 * each.square[i] + new2 * gradient * gradient;
                        const float size = std::sqrt(square) * root + least;
                        const float weight = shrunk * each.weight[i] - step * (mean / size);
                        const float average = each.average[i];
                        each.mean[i] = mean;
                        each.square[i] = square;
                        each.weight[i] = weight;
                        each.average[i] = way < 1 ? average + way * (weight - average) : weight;
                    }
                });
}

}  // extern "C"
