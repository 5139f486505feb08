/* Products of few rows with a matrix, and the small steps between them, on CPUs.
 *
 * A search for a value multiplies a few dozen rows with every matrix of the layers, again and again. General libraries
 * read the matrices at a third to a half of the memory's rate there; these kernels read each once, as it lies, and keep
 * sums in registers. Matrices are float32, or bfloat16 or float16 that becomes float32 in the register; all else is
 * float32, rows contiguous. compiled/library.py compiles this for the processor at hand.
 */
#include <math.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif
#include "team.h"

#if defined(__AVX512F__)
#define WIDTH 16 /* floats in a vector register */
#define DOT_ROWS 6
#define SUM_ROWS 6
#define SUM_COLUMNS 4
#elif defined(__AVX__)
#define WIDTH 8 /* half as many registers */
#define DOT_ROWS 3
#define SUM_ROWS 6
#define SUM_COLUMNS 2
#else
#define WIDTH 4
#define DOT_ROWS 6
#define SUM_ROWS 6
#define SUM_COLUMNS 4
#endif
#define DOT_OUTPUTS 4
#define LINE 64 /* bytes in a line of the cache */
#define BLOCK 32 /* rows of a matrix that stay in the first cache while all rows of the other factor meet them */

typedef float vector __attribute__((vector_size(4 * WIDTH), aligned(4)));
typedef float four __attribute__((vector_size(16), aligned(4)));
typedef uint32_t bits __attribute__((vector_size(4 * WIDTH)));
typedef uint16_t bfloat; /* the upper half of a float */
typedef bfloat bfloats __attribute__((vector_size(2 * WIDTH), aligned(2)));

static inline vector load_float(const float *at) { return *(const vector *)at; }
static inline vector load_bfloat(const bfloat *at) {
    return (vector)(__builtin_convertvector(*(const bfloats *)at, bits) << 16);
}
/* float16 by an instruction alone: compilers make one of nothing else, and what is done to bits goes wrong where tiny
 * numbers count as zero. */
typedef struct { uint16_t bits; } half;
#if defined(__AVX512F__)
#define HAS_HALVES 1
static inline vector load_half(const half *at) { return (vector)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)at)); }
#elif defined(__AVX__) && defined(__F16C__)
#define HAS_HALVES 1
static inline vector load_half(const half *at) { return (vector)_mm256_cvtph_ps(_mm_loadu_si128((const void *)at)); }
#else
#define HAS_HALVES 0
static inline vector load_half(const half *at) { return (vector){at->bits}; } /* not called: most_rows() says none */
#endif
static inline void store(float *at, vector value) { *(vector *)at = value; }

/* Numbers below 1e-38, of which gradients of logits are full, take a hundred times as long; here they are zero. */
#if defined(__SSE__)
typedef unsigned state;
static inline state tiny_is_zero(void) {
    state before = _mm_getcsr();
    _mm_setcsr(before | 0x8040);
    return before;
}
static inline void as_before(state before) { _mm_setcsr(before); }
#else
typedef int state;
static inline state tiny_is_zero(void) { return 0; }
static inline void as_before(state before) { (void)before; }
#endif

static size even(size n, size parts, size at) { return n * at / parts; }

/* Sums may be taken in any order here, and only where it says so: exponential() depends on its own. */
static inline float inner(const float *a, const float *b, size d) {
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (size j = 0; j < d; j++) total += a[j] * b[j];
    return total;
}
static inline void add_times(float *y, float factor, const float *x, size d) {
    for (size j = 0; j < d; j++) y[j] += factor * x[j];
}
static inline void add(float *y, const float *a, const float *b, size d) {
    for (size j = 0; j < d; j++) y[j] = a[j] + b[j];
}
static inline void clear(float *y, size d) {
    for (size j = 0; j < d; j++) y[j] = 0;
}

/* ---- Tiles. Sums are single variables because compilers keep arrays of vectors in memory. ---- */

#define ROWS_1(M, n) M(0, n)
#define ROWS_2(M, n) ROWS_1(M, n) M(1, n)
#define ROWS_3(M, n) ROWS_2(M, n) M(2, n)
#define ROWS_4(M, n) ROWS_3(M, n) M(3, n)
#define ROWS_5(M, n) ROWS_4(M, n) M(4, n)
#define ROWS_6(M, n) ROWS_5(M, n) M(5, n)
#define COLUMNS_1(M, r) M(r, 0)
#define COLUMNS_2(M, r) COLUMNS_1(M, r) M(r, 1)
#define COLUMNS_3(M, r) COLUMNS_2(M, r) M(r, 2)
#define COLUMNS_4(M, r) COLUMNS_3(M, r) M(r, 3)
#define ZERO(r, c) vector sum_##r##_##c = {0};
#define ADD(r, c) sum_##r##_##c += left * right_##c;

static inline four folded(vector value) {
    four parts[WIDTH / 4];
    *(vector *)parts = value;
    four sum = parts[0];
    for (int i = 1; i < WIDTH / 4; i++) sum += parts[i];
    return sum;
}

/* The four totals, side by side. */
static inline four totals(vector a, vector b, vector c, vector d) {
    four p = folded(a), q = folded(b), r = folded(c), s = folded(d);
    return ((four){p[0], q[0], r[0], s[0]} + (four){p[1], q[1], r[1], s[1]}) +
           ((four){p[2], q[2], r[2], s[2]} + (four){p[3], q[3], r[3], s[3]});
}

/* What is wanted next is fetched meanwhile, a part of it by each tile, or memory would rest while the others compute: of
 * four lines, those that tile t of some is to fetch, again and again where it is fewer than four. */
struct fetch {
    size first, count; /* one at least: to fetch a line again is harmless */
};
static inline struct fetch part(size tiles, size t) {
    size first = even(4, tiles < 4 ? tiles : 4, t), end = even(4, tiles < 4 ? tiles : 4, t + 1);
    return t < 4 ? (struct fetch){first, end - first} : (struct fetch){0, 1};
}
#define PART(c) (fetch.first + c * fetch.count / 4)

/* y[r, o] = b[o] + sum over k of x[r, k] w[o, k], for some rows and four outputs; fetches the matrix's next four rows. */
#define DOT_NEXT(type, c) const type *next_##c = w + (DOT_OUTPUTS + PART(c)) * d;
#define DOT_LOAD(type, c) vector right_##c = load_##type(w + c * d + k); __builtin_prefetch(next_##c + k);
#define DOT_ROW(r, n) { vector left = load_float(x + r * d + k); COLUMNS_4(ADD, r) }
#define DOT_STORE(r, n) *(four *)(y + r * ldy) = b + totals(sum_##r##_0, sum_##r##_1, sum_##r##_2, sum_##r##_3);
#define DOT_ZERO(r, n) COLUMNS_4(ZERO, r)
#define DOT_TILE(n, type) \
    static void dot_##type##_##n(const float *x, const void *at, four b, float *y, size ldy, size d, struct fetch fetch) { \
        const type *w = at; \
        COLUMNS_4(DOT_NEXT, type) \
        ROWS_##n(DOT_ZERO, 4) \
        for (size k = 0; k < d; k += WIDTH) { \
            COLUMNS_4(DOT_LOAD, type) \
            ROWS_##n(DOT_ROW, 4) \
        } \
        ROWS_##n(DOT_STORE, 4) \
    }
#define DOT_TILES(type) \
    DOT_TILE(1, type) DOT_TILE(2, type) DOT_TILE(3, type) DOT_TILE(4, type) DOT_TILE(5, type) DOT_TILE(6, type)
DOT_TILES(float) DOT_TILES(bfloat) DOT_TILES(half)
#define DOT_NAMES(type) \
    {0, dot_##type##_1, dot_##type##_2, dot_##type##_3, dot_##type##_4, dot_##type##_5, dot_##type##_6}
static void (*const dot[][7])(const float *, const void *, four, float *, size, size, struct fetch) = {
    DOT_NAMES(float), DOT_NAMES(bfloat), DOT_NAMES(half)};

/* y[r, j] += sum over k of g[r, k] w[k, j], for some rows and a few vectors of columns; fetches some lines a step. */
#define SUM_NEXT(r, c) const char *next_##c = next + (c < lines ? c : 0) * LINE;
#define SUM_LOAD(type, c) vector right_##c = load_##type(w + k * d + c * WIDTH);
#define SUM_FETCH(r, c) __builtin_prefetch(next_##c + k * lines * LINE);
#define SUM_WRITE(r, c) \
    store(y + r * d + c * WIDTH, add ? load_float(y + r * d + c * WIDTH) + sum_##r##_##c : sum_##r##_##c);
#define SUM_ZERO(r, n) COLUMNS_##n(ZERO, r)
#define SUM_ROW(r, n) { float left = g[r * ldg + k]; COLUMNS_##n(ADD, r) }
#define SUM_WRITES(r, n) COLUMNS_##n(SUM_WRITE, r)
#define SUM_TILE(n, c, type) \
    static void sum_##type##_##n##_##c(const float *g, size ldg, const void *at, float *y, size d, size depth, int add, \
                                       const char *next, size lines) { \
        const type *w = at; \
        COLUMNS_4(SUM_NEXT, 0) \
        ROWS_##n(SUM_ZERO, c) \
        for (size k = 0; k < depth; k++) { \
            COLUMNS_##c(SUM_LOAD, type) \
            COLUMNS_4(SUM_FETCH, 0) \
            ROWS_##n(SUM_ROW, c) \
        } \
        ROWS_##n(SUM_WRITES, c) \
    }
#define SUM_TILES(n, type) SUM_TILE(n, 1, type) SUM_TILE(n, 2, type) SUM_TILE(n, 3, type) SUM_TILE(n, 4, type)
#define ALL_SUM_TILES(type) \
    SUM_TILES(1, type) SUM_TILES(2, type) SUM_TILES(3, type) SUM_TILES(4, type) SUM_TILES(5, type) SUM_TILES(6, type)
ALL_SUM_TILES(float) ALL_SUM_TILES(bfloat) ALL_SUM_TILES(half)
#define SUM_NAMES(n, type) {0, sum_##type##_##n##_1, sum_##type##_##n##_2, sum_##type##_##n##_3, sum_##type##_##n##_4}
#define ALL_SUM_NAMES(type) \
    {{0}, SUM_NAMES(1, type), SUM_NAMES(2, type), SUM_NAMES(3, type), SUM_NAMES(4, type), SUM_NAMES(5, type), SUM_NAMES(6, type)}
static void (*const sum[][7][5])(const float *, size, const void *, float *, size, size, int, const char *, size) = {
    ALL_SUM_NAMES(float), ALL_SUM_NAMES(bfloat), ALL_SUM_NAMES(half)};

/* ---- Products with some matrices W (d_out, d_in), d_in a multiple of WIDTH and each d_out four at least. ---- */

struct matrices {
    const void *w[3];
    const float *bias[3]; /* a bias may be missing */
    size d_out[3], count, d_in, all, kind; /* all: the sum of d_out; kind: 0 for float, 1 for bfloat, 2 for half */
};
static inline size size_of_each(const struct matrices *m) { return m->kind ? sizeof(bfloat) : sizeof(float); }
static inline const char *row_of(const struct matrices *m, size i, size row) {
    return (const char *)m->w[i] + row * m->d_in * size_of_each(m);
}

/* The share of y = x W^T + b, side by side for each W: x (n, d_in), y (n, all). */
static void product(const struct matrices *m, const float *x, float *y, size n) {
    size tiles = (n + DOT_ROWS - 1) / DOT_ROWS, begin = 0;
    for (size i = 0; i < m->count; begin += m->d_out[i++]) {
        MINE(from, to, (m->d_out[i] + DOT_OUTPUTS - 1) / DOT_OUTPUTS);
        for (size unit = from; unit < to; unit++) {
            size o = unit * DOT_OUTPUTS; /* the last four may overlap those before */
            if (o + DOT_OUTPUTS > m->d_out[i]) o = m->d_out[i] - DOT_OUTPUTS;
            four bias = m->bias[i] ? *(const four *)(m->bias[i] + o) : (four){0};
            for (size t = 0; t < tiles; t++) {
                size r = even(n, tiles, t), end = even(n, tiles, t + 1);
                dot[m->kind][end - r](x + r * m->d_in, row_of(m, i, o), bias, y + r * m->all + begin + o, m->all, m->d_in,
                                      part(tiles, t));
            }
        }
    }
}

/* y = the sum of g W: g (n, all) those of the matrices side by side, y (n, d_in).
 *
 * Each thread takes rows of each W, which lie one after the other; its sums, but the first thread's, are in partial
 * (threads - 1, n, d_in) until all are there.
 */
static void product_backward(const struct matrices *m, const float *g, float *y, float *partial, size n,
                         struct meeting *meeting) {
    size tiles = (n + SUM_ROWS - 1) / SUM_ROWS, vectors = m->d_in / WIDTH, begin = 0, started = 0;
    size blocks = (vectors + SUM_COLUMNS - 1) / SUM_COLUMNS;
    float *mine = number() ? partial + (number() - 1) * n * m->d_in : y;
    for (size i = 0; i < m->count; begin += m->d_out[i++]) {
        MINE(from, to, m->d_out[i]);
        for (size k = from; k < to; k += BLOCK) {
            size depth = to - k < BLOCK ? to - k : BLOCK, steps = blocks * tiles * depth;
            size lines = (depth * m->d_in * size_of_each(m) / LINE + steps - 1) / steps;
            const char *w = row_of(m, i, k), *next = row_of(m, i, k + depth);
            for (size c = 0; c < blocks; c++) {
                size j = even(vectors, blocks, c), end = even(vectors, blocks, c + 1);
                for (size t = 0; t < tiles; t++, next += lines * depth * LINE) {
                    size r = even(n, tiles, t), rows = even(n, tiles, t + 1) - r;
                    sum[m->kind][rows][end - j](g + r * m->all + begin + k, m->all, w + j * WIDTH * size_of_each(m),
                                                mine + r * m->d_in + j * WIDTH, m->d_in, depth, started > 0, next, lines);
                }
            }
            started = 1;
        }
    }
    if (!started) clear(mine, n * m->d_in);
    all_here(meeting);
    MINE(first, last, n * m->d_in);
    for (size other = 0; other + 1 < members(); other++)
        add(y + first, y + first, partial + other * n * m->d_in + first, last - first);
}

struct multiply {
    const struct matrices *m;
    const float *x;
    float *y, *partial;
    size n;
    struct meeting meeting;
};
static void multiply_share(void *job) {
    const struct multiply *p = job;
    state before = tiny_is_zero();
    product(p->m, p->x, p->y, p->n);
    as_before(before);
}
static void multiply_backward_share(void *job) {
    struct multiply *p = job;
    state before = tiny_is_zero();
    product_backward(p->m, p->x, p->y, p->partial, p->n, &p->meeting);
    as_before(before);
}

/* The two by themselves. */
void multiply(const struct matrices *m, const float *x, float *y, size n, int threads) {
    struct multiply p = {m, x, y, 0, n, {0, 0}};
    together(multiply_share, &p, threads, 0);
}
void multiply_backward(const struct matrices *m, const float *g, float *y, float *partial, size n, int threads) {
    struct multiply p = {m, g, y, partial, n, {0, 0}};
    together(multiply_backward_share, &p, threads, 0);
}

size width(void) { return WIDTH; }

/* Up to how many rows products with a matrix of a kind are quicker here than by torch. In float32 these are few; in the
 * other kinds torch is far slower, unless the processor has instructions for their products. */
size most_rows(size kind) {
    static const size rows[] = {
        96,
#if defined(__AMX_BF16__)
        0,
#else
        256,
#endif
#if !HAS_HALVES
        0,
#elif defined(__AVX512FP16__)
        40,
#else
        256,
#endif
    };
    return rows[kind];
}

/* ---- Steps between products, of one row. ---- */

/* RMSNorm: y = w x / sqrt(mean(x^2) + epsilon). */
struct norm {
    const float *w;
    float epsilon;
};
static inline float scale_of(const struct norm *norm, const float *x, size d) {
    return 1 / sqrtf(inner(x, x, d) / d + norm->epsilon);
}
static void normed(const struct norm *norm, const float *x, float *y, size d) {
    float scale = scale_of(norm, x, d);
    for (size j = 0; j < d; j++) y[j] = x[j] * scale * norm->w[j];
}
static void normed_backward(const struct norm *norm, const float *x, float *g, size d) { /* in place */
    float scale = scale_of(norm, x, d), along = 0;
#pragma omp simd reduction(+ : along)
    for (size j = 0; j < d; j++) along += g[j] * norm->w[j] * x[j];
    along *= scale * scale / d;
    for (size j = 0; j < d; j++) g[j] = scale * (g[j] * norm->w[j] - x[j] * along);
}

/* exp to 1e-7 of it (Cephes' polynomial), in a form that compilers turn into vectors; beyond 88 as at 88. */
static inline float exponential(float x) {
    x = x > 88 ? 88 : x;
    x = x < -88 ? -88 : x;
    float whole = floorf(x * 1.44269504f + 0.5f);
    float r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    int32_t exponent = whole == whole ? (int32_t)whole : 0; /* what is not a number stays so by p */
    union { uint32_t bits; float value; } power = {(uint32_t)(exponent + 127) << 23};
    return p * power.value;
}

/* y = silu(gate) * up, of gate and up side by side. */
static void gated(const float *gate, float *y, size m) {
    for (size j = 0; j < m; j++) y[j] = gate[j] / (1 + exponential(-gate[j])) * gate[m + j];
}
static void gated_backward(const float *slope, const float *gate, float *y, size m) {
    for (size j = 0; j < m; j++) {
        float open = 1 / (1 + exponential(-gate[j]));
        y[j] = slope[j] * gate[m + j] * open * (1 + gate[j] * (1 - open));
        y[m + j] = slope[j] * gate[j] * open;
    }
}

/* A head turned by rotary angles, in place; the sines of the first half are negated. A gradient back swaps their halves. */
static void turned(float *low, const float *c, const float *s, size dim, int back) {
    size half = dim / 2;
    float *high = low + half;
    const float *s_low = back ? s + half : s, *s_high = back ? s : s + half;
    for (size j = 0; j < half; j++) {
        float a = low[j], b = high[j];
        low[j] = a * c[j] + b * s_low[j];
        high[j] = b * c[j + half] + a * s_high[j];
    }
}

/* ---- Layers: y = x + Attention(norm(x)), z = y + W_down (silu(W_gate norm(y)) * W_up norm(y)). ---- */

/* Positions are entries of a grid (g, width): row and entry (n) tell which, place (g, width) the inverse, -1 where there
 * is none. They come after those of a prior state. */
struct shape {
    const size *row, *entry, *place;
    size n, d, h, kv, dim, m, width;
};

struct layer {
    struct norm first, second, query, key; /* the last two, over a head, may be missing */
    struct matrices entering, leaving, both, down;
    const float *prior_keys, *prior_values; /* (g, kv, prior, dim) */
    const float *cosines, *sines; /* (n, dim) */
    const float *mask; /* (g * kv, h / kv * width, prior + width) added to scores; what it hides is not computed */
    size prior;
    float scaling;
    /* Kept for the backward pass: (n, d), (n, h + 2 kv, dim) before and after norms and turns, (n, h, prior + width), (n, d),
     * (n, 2 m). Without norms of heads, raw is rows. */
    float *x, *raw, *rows, *shares, *middle, *gates;
};

struct run {
    const struct shape *shape;
    const struct layer *layers;
    size count;
    float *y; /* (n, d) the result; in the backward pass the gradient of it, in the end that of the first x */
    /* Room: (n, d) twice, (n, h dim), (n, m), (n, 2 m), (n, h + 2 kv, dim), as the largest shares, and for products. */
    float *narrow, *other, *mixed, *wide, *wider, *slopes, *scores, *partial;
    struct meeting meeting;
};

#define HIDDEN -1e30f

/* Keys (which = 0) or values (1) of head b at a column, in the grid's row r; nothing where no position is. */
static inline const float *at_column(const struct shape *p, const struct layer *l, size r, size b, size column,
                                     int which) {
    if (column < l->prior)
        return (which ? l->prior_values : l->prior_keys) + ((r * p->kv + b) * l->prior + column) * p->dim;
    size i = p->place[r * p->width + column - l->prior];
    return i < 0 ? 0 : l->rows + (i * (p->h + 2 * p->kv) + p->h + which * p->kv + b) * p->dim;
}

/* What head a of position i attends to: its shares, and in y their mix of values. */
static void attend(const struct shape *p, const struct layer *l, size i, size a, float *y) {
    size columns = l->prior + p->width, group = p->h / p->kv, b = a / group, r = p->row[i];
    const float *query = l->rows + (i * (p->h + 2 * p->kv) + a) * p->dim;
    const float *mask = l->mask + ((r * p->kv + b) * group * p->width + a % group * p->width + p->entry[i]) * columns;
    float *shares = l->shares + (i * p->h + a) * columns, most = HIDDEN, total = 0;
    for (size c = 0; c < columns; c++) {
        const float *key = mask[c] > HIDDEN ? at_column(p, l, r, b, c, 0) : 0;
        shares[c] = key ? l->scaling * inner(query, key, p->dim) + mask[c] : HIDDEN;
        most = shares[c] > most ? shares[c] : most;
    }
    for (size c = 0; c < columns; c++) {
        shares[c] = shares[c] == HIDDEN ? 0 : exponential(shares[c] - most);
        total += shares[c];
    }
    clear(y, p->dim);
    for (size c = 0; c < columns; c++) {
        if (!shares[c]) continue; /* hidden, and so it stays whatever the total is */
        shares[c] /= total;
        add_times(y, shares[c], at_column(p, l, r, b, c, 1), p->dim);
    }
}

/* From the gradient of that mix, those of the scores and of the query. */
static void attend_backward(const struct shape *p, const struct layer *l, size i, size a, const float *slope,
                            float *scores,
                        float *query_slope) {
    size columns = l->prior + p->width, b = a / (p->h / p->kv), r = p->row[i];
    const float *shares = l->shares + (i * p->h + a) * columns;
    float mean = 0;
    for (size c = 0; c < columns; c++) {
        scores[c] = shares[c] ? inner(slope, at_column(p, l, r, b, c, 1), p->dim) : 0;
        mean += shares[c] * scores[c];
    }
    clear(query_slope, p->dim);
    for (size c = 0; c < columns; c++) {
        scores[c] = l->scaling * shares[c] * (scores[c] - mean);
        if (shares[c]) add_times(query_slope, scores[c], at_column(p, l, r, b, c, 0), p->dim);
    }
}

/* The gradients of key and value b of position i, from all scores of positions in its row. */
static void attended_backward(const struct shape *p, const struct layer *l, size i, size b, const float *mixed,
                          const float *scores, float *key_slope, float *value_slope) {
    size columns = l->prior + p->width, group = p->h / p->kv, column = l->prior + p->entry[i];
    clear(key_slope, p->dim);
    clear(value_slope, p->dim);
    for (size e = 0; e < p->width; e++) {
        size other = p->place[p->row[i] * p->width + e];
        for (size a = b * group; other >= 0 && a < (b + 1) * group; a++) {
            size unit = other * p->h + a;
            float share = l->shares[unit * columns + column];
            if (!share) continue;
            const float *query = l->rows + (other * (p->h + 2 * p->kv) + a) * p->dim;
            add_times(key_slope, scores[unit * columns + column], query, p->dim);
            add_times(value_slope, share, mixed + unit * p->dim, p->dim);
        }
    }
}

/* Queries and keys of position i, normed where the model does that, and turned. */
static void placed(const struct shape *p, const struct layer *l, size i) {
    size heads = p->h + 2 * p->kv;
    for (size a = 0; a < heads; a++) {
        const float *raw = l->raw + (i * heads + a) * p->dim;
        float *head = l->rows + (i * heads + a) * p->dim;
        const struct norm *norm = a < p->h ? &l->query : &l->key;
        if (a < p->h + p->kv && norm->w) normed(norm, raw, head, p->dim);
        else if (raw != head) for (size j = 0; j < p->dim; j++) head[j] = raw[j];
        if (a < p->h + p->kv) turned(head, l->cosines + i * p->dim, l->sines + i * p->dim, p->dim, 0);
    }
}
static void placed_backward(const struct shape *p, const struct layer *l, size i, float *slopes) {
    size heads = p->h + 2 * p->kv;
    for (size a = 0; a < p->h + p->kv; a++) {
        const struct norm *norm = a < p->h ? &l->query : &l->key;
        float *slope = slopes + (i * heads + a) * p->dim;
        turned(slope, l->cosines + i * p->dim, l->sines + i * p->dim, p->dim, 1);
        if (norm->w) normed_backward(norm, l->raw + (i * heads + a) * p->dim, slope, p->dim);
    }
}

/* What all threads do together; after each step all wait, but where the next takes the same rows. */
static void forward_share(void *job) {
    struct run *run = job;
    const struct shape *p = run->shape;
    struct meeting *meeting = &run->meeting;
    state before = tiny_is_zero();
    size d = p->d;
    MINE(from, to, p->n);
    MINE(first, last, p->n * p->h);
    for (const struct layer *l = run->layers; l < run->layers + run->count; l++) {
        float *y = l + 1 < run->layers + run->count ? l[1].x : run->y;
        for (size i = from; i < to; i++) normed(&l->first, l->x + i * d, run->narrow + i * d, d);
        all_here(meeting);
        product(&l->entering, run->narrow, l->raw, p->n);
        all_here(meeting);
        for (size i = from; i < to; i++) placed(p, l, i);
        all_here(meeting);
        for (size u = first; u < last; u++) attend(p, l, u / p->h, u % p->h, run->mixed + u * p->dim);
        all_here(meeting);
        product(&l->leaving, run->mixed, run->other, p->n);
        all_here(meeting);
        for (size i = from; i < to; i++) {
            add(l->middle + i * d, l->x + i * d, run->other + i * d, d);
            normed(&l->second, l->middle + i * d, run->narrow + i * d, d);
        }
        all_here(meeting);
        product(&l->both, run->narrow, l->gates, p->n);
        all_here(meeting);
        for (size i = from; i < to; i++) gated(l->gates + i * 2 * p->m, run->wide + i * p->m, p->m);
        all_here(meeting);
        product(&l->down, run->wide, run->other, p->n);
        all_here(meeting);
        for (size i = from; i < to; i++) add(y + i * d, l->middle + i * d, run->other + i * d, d);
    }
    as_before(before);
}

/* The gradient before a norm of x joins the one that went past it, for some rows. */
static void residual_backward(const struct run *run, const struct norm *norm, const float *x, size from, size to) {
    size d = run->shape->d;
    for (size i = from; i < to; i++) {
        normed_backward(norm, x + i * d, run->narrow + i * d, d);
        add(run->y + i * d, run->y + i * d, run->narrow + i * d, d);
    }
}

static void backward_share(void *job) {
    struct run *run = job;
    const struct shape *p = run->shape;
    struct meeting *meeting = &run->meeting;
    state before = tiny_is_zero();
    size heads = p->h + 2 * p->kv;
    MINE(from, to, p->n);
    MINE(first, last, p->n * p->h);
    MINE(first_new, last_new, p->n * p->kv);
    for (const struct layer *l = run->layers + run->count; l-- > run->layers;) {
        size columns = l->prior + p->width;
        product_backward(&l->down, run->y, run->wide, run->partial, p->n, meeting);
        all_here(meeting);
        for (size i = from; i < to; i++)
            gated_backward(run->wide + i * p->m, l->gates + i * 2 * p->m, run->wider + i * 2 * p->m, p->m);
        all_here(meeting);
        product_backward(&l->both, run->wider, run->narrow, run->partial, p->n, meeting);
        all_here(meeting);
        residual_backward(run, &l->second, l->middle, from, to);
        all_here(meeting);
        product_backward(&l->leaving, run->y, run->mixed, run->partial, p->n, meeting);
        all_here(meeting);
        for (size u = first; u < last; u++)
            attend_backward(p, l, u / p->h, u % p->h, run->mixed + u * p->dim, run->scores + u * columns,
                        run->slopes + (u / p->h * heads + u % p->h) * p->dim);
        all_here(meeting);
        for (size u = first_new; u < last_new; u++) {
            float *key_slope = run->slopes + (u / p->kv * heads + p->h + u % p->kv) * p->dim;
            attended_backward(p, l, u / p->kv, u % p->kv, run->mixed, run->scores, key_slope,
                              key_slope + p->kv * p->dim);
        }
        all_here(meeting);
        for (size i = from; i < to; i++) placed_backward(p, l, i, run->slopes);
        all_here(meeting);
        product_backward(&l->entering, run->slopes, run->narrow, run->partial, p->n, meeting);
        all_here(meeting);
        residual_backward(run, &l->first, l->x, from, to);
        all_here(meeting);
    }
    as_before(before);
}

void forward(struct run *run, int threads) { together(forward_share, run, threads, 0); }
void backward(struct run *run, int threads) { together(backward_share, run, threads, 0); }
