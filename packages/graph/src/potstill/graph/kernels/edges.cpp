// Cross-entropy of the differences along edges, and its gradient, in one pass over the edges.
//
//   value    = -sum_e a_e <q_e, log softmax(|z_i - z_j| / tau)>
//   gradient : a_e / tau (softmax - q_e) sign(z_i - z_j), added to i and subtracted from j
//
// Edges are sorted by i. Each thread takes a run of edges and its own copy of the gradient, so the
// result depends on the number of threads but not on their timing.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

// exp for x <= 0 as 2^n times a Taylor polynomial on |r| <= ln(2) / 2: relative error below 1e-7.
inline float exp_of(float x) {
    x = std::max(x, -87.0f);
    const float n = std::nearbyint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

struct Problem {
    const float *z, *z_t, *q_t, *factor;
    const int64_t *i, *j;
    int64_t classes;
    float inverse_tau;
};

// P is the number of classes, padded: loops of a constant length become a few vector operations.
template <int P>
struct Softmax {
    alignas(64) float scaled[P], probability[P];
    float log_sum;  // of exp(scaled), so that log softmax = scaled - log_sum

    void of_difference(const float *a, const float *b, const Problem &problem) {
        const int classes = static_cast<int>(problem.classes);
        for (int c = 0; c < P; ++c) scaled[c] = -1e30f;
        for (int c = 0; c < classes; ++c) scaled[c] = std::fabs(a[c] - b[c]) * problem.inverse_tau;
        float top = scaled[0];
        for (int c = 1; c < P; ++c) top = std::max(top, scaled[c]);
        float sum = 0;
        for (int c = 0; c < P; ++c) {
            probability[c] = exp_of(scaled[c] - top);
            sum += c < classes ? probability[c] : 0.0f;
        }
        const float inverse = 1.0f / sum;
        for (int c = 0; c < P; ++c) probability[c] *= inverse;
        log_sum = top + std::log(sum);
    }
};

template <int P>
double run(const Problem &problem, int64_t begin, int64_t end, float *gradient) {
    const int classes = static_cast<int>(problem.classes);
    Softmax<P> student, teacher;
    double value = 0;
    for (int64_t e = begin; e < end; ++e) {
        const int64_t i = problem.i[e] * classes, j = problem.j[e] * classes;
        const float *a = problem.z + i, *b = problem.z + j;
        student.of_difference(a, b, problem);
        const float *q = problem.q_t + e * classes;
        if (problem.q_t == nullptr) {
            teacher.of_difference(problem.z_t + i, problem.z_t + j, problem);
            q = teacher.probability;
        }
        float inner = 0;
        for (int c = 0; c < classes; ++c) inner += q[c] * (student.scaled[c] - student.log_sum);
        value -= static_cast<double>(problem.factor[e]) * inner;
        if (gradient == nullptr) continue;
        const float rate = problem.factor[e] * problem.inverse_tau;
        float *to = gradient + i, *from = gradient + j;
        for (int c = 0; c < classes; ++c) {
            const float step = rate * (student.probability[c] - q[c]);
            const float slope = a[c] > b[c] ? step : (a[c] < b[c] ? -step : 0.0f);
            to[c] += slope;
            from[c] -= slope;
        }
    }
    return value;
}

double run_padded(const Problem &problem, int64_t begin, int64_t end, float *gradient) {
    if (problem.classes <= 8) return run<8>(problem, begin, end, gradient);
    if (problem.classes <= 16) return run<16>(problem, begin, end, gradient);
    if (problem.classes <= 32) return run<32>(problem, begin, end, gradient);
    if (problem.classes <= 64) return run<64>(problem, begin, end, gradient);
    return run<128>(problem, begin, end, gradient);
}

// Calls work(number) on every thread; the caller's thread is the first of them.
template <typename Work>
void on_threads(int threads, const Work &work) {
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work, t);
    work(0);
    for (auto &thread : pool) thread.join();
}

}  // namespace

extern "C" double edge_contrast(const float *z, const float *z_t, const float *q_t,
                                const int64_t *i, const int64_t *j, const float *factor,
                                float *gradient, int64_t nodes, int64_t classes, int64_t edges,
                                float inverse_tau, int threads) {
    const Problem problem{z, z_t, q_t, factor, i, j, classes, inverse_tau};
    const int64_t size = nodes * classes;
    // A thread must have enough edges to be worth its start and its copy of the gradient.
    const int64_t useful = std::max<int64_t>(1, edges * 4 / std::max<int64_t>(nodes, 4096));
    const int count = static_cast<int>(std::clamp<int64_t>(threads, 1, std::min<int64_t>(useful, 64)));
    std::vector<double> values(count, 0.0);
    std::vector<std::vector<float>> copies(count);

    on_threads(count, [&](int t) {
        float *own = gradient;
        if (gradient != nullptr) {
            if (t > 0) {
                copies[t].assign(size, 0.0f);
                own = copies[t].data();
            } else {
                std::fill(gradient, gradient + size, 0.0f);
            }
        }
        values[t] = run_padded(problem, edges * t / count, edges * (t + 1) / count, own);
    });
    if (gradient != nullptr && count > 1) {
        on_threads(count, [&](int t) {
            for (int other = 1; other < count; ++other)
                for (int64_t k = size * t / count; k < size * (t + 1) / count; ++k)
                    gradient[k] += copies[other][k];
        });
    }
    double value = 0;
    for (double part : values) value += part;
    return value;
}
