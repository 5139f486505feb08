/* y = A (A^T k) in one reading of A, in float64.
 *
 * A column of A gives its coordinate and takes part in y as soon as that is known, while it still lies in the cache; so
 * A^T lies row after row here. native/library.py compiles this for the processor at hand.
 */
#include "team.h"

#define LINE 8 /* numbers in a line of the cache */
#define STRIP (8 * LINE)
#define FETCH(row) \
    for (size i = j; i < end; i += LINE) __builtin_prefetch((row) + i, 0, 2); /* not into the first cache: it is full */

/* Four rows of A^T, or fewer: their coordinates p of k, and their part of y. The four next are fetched meanwhile, two by
 * each half of the work, or memory would rest while the other half runs. */
static void meet(const double *rows, size count, size d, const double *k, double *p, double *y) {
    const double *a = rows, *b = rows + (count > 1) * d, *c = rows + (count > 2) * 2 * d, *e = rows + (count > 3) * 3 * d;
    const double *next = rows + 4 * d;
    double at_a = 0, at_b = 0, at_c = 0, at_e = 0;
    for (size j = 0; j < d; j += STRIP) {
        size end = j + STRIP < d ? j + STRIP : d;
        FETCH(next) FETCH(next + d)
#pragma omp simd reduction(+ : at_a, at_b, at_c, at_e)
        for (size i = j; i < end; i++) at_a += a[i] * k[i], at_b += b[i] * k[i], at_c += c[i] * k[i], at_e += e[i] * k[i];
    }
    double found[] = {at_a, count > 1 ? at_b : 0, count > 2 ? at_c : 0, count > 3 ? at_e : 0};
    for (size r = 0; r < count; r++) p[r] = found[r];
    for (size j = 0; j < d; j += STRIP) {
        size end = j + STRIP < d ? j + STRIP : d;
        FETCH(next + 2 * d) FETCH(next + 3 * d)
        for (size i = j; i < end; i++)
            y[i] += found[0] * a[i] + found[1] * b[i] + found[2] * c[i] + found[3] * e[i];
    }
}

struct reading {
    const double *rows, *key; /* (m, d) and (d) */
    double *found, *partial; /* (m + d): A^T k and, after it, y; (threads - 1, d): the other threads' y */
    size m, d;
    struct meeting meeting;
};
static void read_share(void *job) {
    struct reading *p = job;
    size d = p->d, others = members() - 1;
    double *whole = p->found + p->m, *y = number() ? p->partial + (number() - 1) * d : whole;
    MINE(from, to, p->m);
    for (size j = 0; j < d; j++) y[j] = 0;
    for (size row = from; row < to; row += 4)
        meet(p->rows + row * d, to - row < 4 ? to - row : 4, d, p->key, p->found + row, y);
    all_here(&p->meeting);
    MINE(first, last, d);
    for (size other = 0; other < others; other++)
        for (size j = first; j < last; j++) whole[j] += p->partial[other * d + j];
}

void read_once(const double *rows, const double *key, double *found, double *partial, size m, size d, int threads) {
    struct reading p = {rows, key, found, partial, m, d, {0, 0}};
    together(read_share, &p, threads, 0);
}
