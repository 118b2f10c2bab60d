/* The loops of merges, with the bits that NumPy computes: `native.py` calls them by ctypes.

   Each entry has the same single operations in the same order as in `arithmetic.py` and `sums.py`,
   so the file must be compiled without fused multiply-adds (-ffp-contract=off) and without -ffast-math.
   Work goes in tiles that stay in the first cache. A vector holds float32, or the bits of bfloat16. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(BASELINE) && (__GNUC__ >= 8)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif
#if !defined(__FLT_EVAL_METHOD__) || __FLT_EVAL_METHOD__ != 0
#error "float32 is computed with more digits here, so the bits would differ from NumPy's"
#endif
#define INLINE static inline __attribute__((always_inline))

enum { TILE = 512 };         /* entries */
enum { GROUP = 32 };         /* entries that are compared at once */
enum { BLOCK = 1 << 14 };    /* entries of a block of a sum: SUM_ENTRIES in sums.py */
enum { STRETCH = 1 << 10 };  /* entries of a block that are added to those after them: _ADDED */
enum { STRIP = 256, ROWS = 4 }; /* entries of a stretch, and stretches, that are added at once */

const char *source_digest(void) { return SOURCE_DIGEST; }

INLINE void widen_tile(const void *vector, int bfloat16, size_t at, size_t count, float *out) {
    if (bfloat16) {
        const uint16_t *bits = (const uint16_t *)vector + at;
        for (size_t i = 0; i < count; i++) {
            uint32_t wide = (uint32_t)bits[i] << 16;
            memcpy(out + i, &wide, sizeof wide);
        }
    } else {
        memcpy(out, (const float *)vector + at, count * sizeof(float));
    }
}

/* Widen bfloat16 to float32. */
FOR_EACH_PROCESSOR
void widen(size_t entries, const uint16_t *bits, uint32_t *out) {
    for (size_t i = 0; i < entries; i++) out[i] = (uint32_t)bits[i] << 16;
}

/* Return the largest magnitude: the bits of a float32 without its sign, where NaN is largest. */
FOR_EACH_PROCESSOR
int32_t largest(size_t entries, const int32_t *values) {
    int32_t most = 0;
    for (size_t i = 0; i < entries; i++) {
        int32_t magnitude = values[i] & 0x7FFFFFFF;
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* Round float32 to bfloat16, to nearest even; return the largest magnitude before rounding. */
FOR_EACH_PROCESSOR
int32_t narrow(size_t entries, const uint32_t *values, uint16_t *out) {
    int32_t most = 0;
    for (size_t i = 0; i < entries; i++) {
        uint32_t bits = values[i];
        int32_t magnitude = (int32_t)(bits & 0x7FFFFFFF);
        most = magnitude > most ? magnitude : most;
        out[i] = (uint16_t)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
    }
    return most;
}

/* Compute sum = Σ c_k v_k in float32, in order. With `differences` v_k is a vector's difference from
   the base b; with `moved` the result is b - (0 - sum). */
FOR_EACH_PROCESSOR
void combine(size_t entries, const void *base, int base_bfloat16, size_t count,
             const void *const *vectors, const uint8_t *bfloat16, const float *coefficients,
             int differences, int moved, float *out) {
    for (size_t at = 0; at < entries; at += TILE) {
        size_t n = entries - at < TILE ? entries - at : TILE;
        float origin[TILE], vector[TILE], sum[TILE];
        if (base) widen_tile(base, base_bfloat16, at, n, origin);
        if (!count) memset(sum, 0, sizeof sum);
        for (size_t k = 0; k < count; k++) {
            float coefficient = coefficients[k];
            widen_tile(vectors[k], bfloat16[k], at, n, vector);
            if (differences)
                for (size_t i = 0; i < n; i++) vector[i] -= origin[i];
            if (k == 0)
                for (size_t i = 0; i < n; i++) sum[i] = vector[i] * coefficient;
            else
                for (size_t i = 0; i < n; i++) sum[i] += vector[i] * coefficient;
        }
        if (moved)
            for (size_t i = 0; i < n; i++) out[at + i] = origin[i] - (0.0f - sum[i]);
        else
            memcpy(out + at, sum, n * sizeof(float));
    }
}

/* Copy the entries whose magnitude is at least `least` and at most `most`; the others become +0. */
FOR_EACH_PROCESSOR
void mask(size_t entries, const int32_t *values, int32_t least, int32_t most, int32_t *out) {
    for (size_t i = 0; i < entries; i++) {
        int32_t magnitude = values[i] & 0x7FFFFFFF;
        out[i] = values[i] & -((magnitude >= least) & (magnitude <= most));
    }
}

/* Count the upper halves of magnitudes; or with a bucket the lower halves of those whose upper half
   is that. */
FOR_EACH_PROCESSOR
void count(size_t entries, const uint32_t *values, int32_t bucket, int64_t *counts) {
    if (bucket < 0) {
        for (size_t i = 0; i < entries; i++) counts[values[i] >> 16 & 0x7FFF]++;
        return;
    }
    for (size_t at = 0; at < entries; at += GROUP) {
        size_t n = entries - at < GROUP ? entries - at : GROUP;
        uint32_t found = 0; /* few groups have an entry in the bucket */
        for (size_t i = at; i < at + n; i++)
            found |= (values[i] >> 16 & 0x7FFF) == (uint32_t)bucket;
        for (size_t i = at; found && i < at + n; i++)
            if ((values[i] >> 16 & 0x7FFF) == (uint32_t)bucket) counts[values[i] & 0xFFFF]++;
    }
}

/* Compute Σ f_k v_k over the vectors with the sign of Σ v_k, divided by Σ w_k over these if there are
   weights: `agreement` in task_vectors.py. */
FOR_EACH_PROCESSOR
void agree(size_t entries, size_t count, const float *const *vectors, const float *factors,
           const float *weights, float *out) {
    for (size_t at = 0; at < entries; at += TILE) {
        size_t n = entries - at < TILE ? entries - at : TILE;
        float sign[TILE], merged[TILE] = {0}, divisor[TILE] = {0};
        memcpy(sign, vectors[0] + at, n * sizeof(float));
        for (size_t k = 1; k < count; k++)
            for (size_t i = 0; i < n; i++) sign[i] += vectors[k][at + i];
        for (size_t i = 0; i < n; i++) {
            float sum = sign[i]; /* NaN stays */
            sign[i] = sum > 0 ? 1.0f : sum < 0 ? -1.0f : sum == 0 ? 0.0f : sum;
        }
        for (size_t k = 0; k < count; k++) {
            const float *vector = vectors[k] + at;
            float factor = factors[k], weight = weights ? weights[k] : 0.0f;
            for (size_t i = 0; i < n; i++) {
                float share = vector[i] * sign[i];
                share = share < 0 ? 0.0f : share;
                merged[i] += share * factor;
                divisor[i] += (share > 0 ? 1.0f : 0.0f) * weight;
            }
        }
        for (size_t i = 0; i < n; i++) {
            float signed_sum = merged[i] * sign[i], by = divisor[i] == 0 ? 1.0f : divisor[i];
            out[at + i] = weights ? signed_sum / by : signed_sum;
        }
    }
}

/* Widen a strip of a vector to float64. */
INLINE void widen_strip(const void *vector, int bfloat16, size_t at, double *restrict out) {
    if (bfloat16) {
        const uint16_t *bits = (const uint16_t *)vector + at;
        for (size_t i = 0; i < STRIP; i++) {
            uint32_t wide = (uint32_t)bits[i] << 16;
            float single;
            memcpy(&single, &wide, sizeof wide);
            out[i] = single;
        }
    } else {
        const float *single = (const float *)vector + at;
        for (size_t i = 0; i < STRIP; i++) out[i] = single[i];
    }
}

/* Add the products of two rows of ROWS strips of a stretch to their sums, strip after strip. */
INLINE void add_products(const double *x, const double *y, double *restrict sum) {
    for (size_t i = 0; i < STRIP; i++) {
        double total = sum[i];
        for (size_t row = 0; row < ROWS; row++) total += x[row * STRIP + i] * y[row * STRIP + i];
        sum[i] = total;
    }
}

/* Compute the dot products of all pairs of vectors, or of their differences from a base, in float64,
   over `blocks` blocks: `products` has a row of blocks for each pair. Stretches are added in order,
   then halves to halves. `sums` has room for a stretch of each pair, `wide` for ROWS strips of each
   vector. */
FOR_EACH_PROCESSOR
void gram(size_t blocks, const void *base, int base_bfloat16, size_t count,
          const void *const *vectors, const uint8_t *bfloat16, double *sums, double *wide,
          double *products) {
    size_t pairs = count * (count + 1) / 2;
    for (size_t block = 0; block < blocks; block++) {
        memset(sums, 0, pairs * STRETCH * sizeof(double));
        for (size_t strip = 0; strip < STRETCH; strip += STRIP)
            for (size_t rows = 0; rows < BLOCK; rows += ROWS * STRETCH) {
                for (size_t row = 0; row < ROWS; row++) {
                    size_t at = block * BLOCK + rows + row * STRETCH + strip;
                    double origin[STRIP];
                    if (base) widen_strip(base, base_bfloat16, at, origin);
                    for (size_t k = 0; k < count; k++) {
                        double *out = wide + (k * ROWS + row) * STRIP;
                        widen_strip(vectors[k], bfloat16[k], at, out);
                        if (base)
                            for (size_t i = 0; i < STRIP; i++) out[i] -= origin[i];
                    }
                }
                double *sum = sums + strip;
                for (size_t a = 0; a < count; a++) {
                    const double *x = wide + a * ROWS * STRIP;
                    add_products(x, x, sum);
                    sum += STRETCH;
                    for (size_t b = a + 1; b < count; b++, sum += STRETCH)
                        add_products(x, wide + b * ROWS * STRIP, sum);
                }
            }
        for (size_t pair = 0; pair < pairs; pair++) {
            double *sum = sums + pair * STRETCH;
            for (size_t half = STRETCH / 2; half; half /= 2)
                for (size_t i = 0; i < half; i++) sum[i] += sum[i + half];
            products[pair * blocks + block] = sum[0];
        }
    }
}
