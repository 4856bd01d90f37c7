// out = matrix * dense, for a sparse matrix in compressed rows and a dense one in row-major order.
//
// A row of the result is the sum of a few far-apart rows of the dense matrix. So a block of its
// columns is packed into memory of its own, small enough for the second-level cache, and all rows
// of the result are made for this block, with their sums in registers. Threads take blocks in turn:
// each sum is made by one thread in the order of the entries, whatever the number of threads.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <new>
#include <thread>
#include <vector>

namespace {

typedef float Vector __attribute__((vector_size(64), aligned(64)));
constexpr int LANES = 16;

struct Problem {
    const int64_t *pointers, *columns;
    const float *values, *dense;
    float *out;
    int64_t rows, inner, width;
};

// V vectors of columns, from `first` on; the last block may stick out over the width.
template <int V>
void run(const Problem &problem, int64_t first, Vector *packed) {
    const int64_t size = std::min<int64_t>(V * LANES, problem.width - first);
    for (int64_t j = 0; j < problem.inner; ++j) {
        float *to = reinterpret_cast<float *>(packed + j * V);
        std::memcpy(to, problem.dense + j * problem.width + first, size * sizeof(float));
        std::memset(to + size, 0, (V * LANES - size) * sizeof(float));
    }
    for (int64_t i = 0; i < problem.rows; ++i) {
        Vector sum[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[v] = Vector{};
        for (int64_t e = problem.pointers[i]; e < problem.pointers[i + 1]; ++e) {
            const Vector *row = packed + problem.columns[e] * V;
            const float value = problem.values[e];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[v] += value * row[v];
        }
        std::memcpy(problem.out + i * problem.width + first, sum, size * sizeof(float));
    }
}

template <int V>
void run_blocks(const Problem &problem, int thread, int threads) {
    const int64_t bytes = problem.inner * V * sizeof(Vector);
    Vector *packed = static_cast<Vector *>(::operator new(bytes, std::align_val_t{64}));
    for (int64_t first = thread * V * LANES; first < problem.width; first += threads * V * LANES)
        run<V>(problem, first, packed);
    ::operator delete(packed, std::align_val_t{64});
}

}  // namespace

extern "C" void csr_product(const int64_t *pointers, const int64_t *columns, const float *values,
                            const float *dense, float *out, int64_t rows, int64_t inner,
                            int64_t width, int threads) {
    const Problem problem{pointers, columns, values, dense, out, rows, inner, width};
    // A packed block of four vectors of columns takes 256 bytes a row.
    const auto work = inner <= 8192 ? run_blocks<4> : run_blocks<2>;
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work, std::cref(problem), t, threads);
    work(problem, 0, threads);
    for (auto &thread : pool) thread.join();
}
