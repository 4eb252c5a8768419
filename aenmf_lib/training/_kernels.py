"""Compiled loops of coordinate descent over the genes. Arrays have the precision of X, except F and G: float64."""

import math

import numpy as np
from numba import njit, prange

GENES = 256  # number of genes in a block
_FAST = {"contract", "reassoc", "arcp", "nsz"}  # sums may be reordered; NaN and infinity are kept, for the solver
_parallel = njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
_serial = njit(fastmath=_FAST, cache=True, nogil=True)
# Always inlined: as separate functions, newly compiled code and cached code could round differently.
_part = njit(fastmath=_FAST, nogil=True, forceinline=True)


@_part
def best_step(c1, c2, c3, c4, low):
    """Return the minimizer t ≥ low of c₁t + c₂t² + c₃t³ + c₄t⁴ (c₄ > 0), and the minimum; t may be 0 or low."""
    best, least = 0.0, 0.0
    value = low * (c1 + low * (c2 + low * (c3 + low * c4)))
    if value < least:
        best, least = low, value
    a, b, c = 0.75 * c3 / c4, 0.5 * c2 / c4, 0.25 * c1 / c4
    q, r = (a * a - 3 * b) / 9, (2 * a * a * a - 9 * a * b + 27 * c) / 54
    three = r * r < q * q * q
    if three:  # three real roots; the middle one is a maximum
        size, angle = -2 * math.sqrt(q), math.acos(r / math.sqrt(q * q * q))
    else:
        size, angle = 0.0, 0.0
        big = -math.copysign((abs(r) + math.sqrt(r * r - q * q * q)) ** (1 / 3), r)
    for root in range(2 if three else 1):
        if three:
            t = size * math.cos((angle + 2 * math.pi * root) / 3) - a / 3
        else:
            t = big + (q / big if big != 0 else 0.0) - a / 3
        if t > low:
            value = t * (c1 + t * (c2 + t * (c3 + t * c4)))
            if value < least:
                best, least = t, value
    return best, least


@_part
def _gain(c1, c2, w):
    """Estimate the gain of the best step from w ≥ 0 by its first two terms; return infinity if these are not convex."""
    if c2 <= 0:
        return np.inf
    t = max(-0.5 * c1 / c2, -w)
    return -t * (c1 + t * c2)


@_part
def _relaxed(t, least, relax, low, c1, c2, c3, c4):
    """Return the over-relaxed step if it lowers the objective, else the best step; with its value."""
    far = max(relax * t, low)
    value = far * (c1 + far * (c2 + far * (c3 + far * c4)))
    return (far, value) if value < 0 else (t, least)


@_part
def _add_rows(out, M, weights, rows, n):
    """``out += Σ weights[r] M[r]`` over the first n of `rows`, four rows at a time, to store each sum less often."""
    q, k = 0, len(out)
    while q + 4 <= n:
        i0, i1, i2, i3 = rows[q], rows[q + 1], rows[q + 2], rows[q + 3]
        m0, m1, m2, m3 = M[i0], M[i1], M[i2], M[i3]
        x0, x1, x2, x3 = weights[i0], weights[i1], weights[i2], weights[i3]
        for j in range(k):
            out[j] += x0 * m0[j] + x1 * m1[j] + x2 * m2[j] + x3 * m3[j]
        q += 4
    while q < n:
        m0, x0 = M[rows[q]], weights[rows[q]]
        for j in range(k):
            out[j] += x0 * m0[j]
        q += 1


@_part
def _nonzero(x, places):
    """Store the indices of the nonzero entries of x in `places`, and return their number."""
    n = 0
    for j in range(len(x)):
        if x[j] != 0:
            places[n] = j
            n += 1
    return n


@_part
def _rank_two(M, j, t, x, extra):
    """``M += t (e_j xᵀ + x e_jᵀ) + extra e_j e_jᵀ`` for a symmetric M, and return row j."""
    row = M[j]
    for i in range(len(x)):
        row[i] += t * x[i]
    row[j] += t * x[j] + extra
    for i in range(len(x)):
        M[i, j] = row[i]
    return row


@_serial
def visit(A, B, S, R, squares, W, F, G, n_lambda, relax, least, D):
    """Update W once for one block of genes, in AE-NMF and model 1. Return the gain and the number of steps."""
    # A, B : (genes, k), W S and W R for these genes. S, R : (genes, genes), between these genes; R may be empty.
    # W, F and G are updated; D receives the change of W. Steps that gain less than `least` are skipped.
    n_genes, k = W.shape
    T = W.dtype.type
    g, places, moved, n_moved = np.empty(k, W.dtype), np.empty(k, np.int64), np.empty(n_genes, np.int64), 0
    gained, steps = 0.0, 0
    for a in range(n_genes):
        s, r = squares[a], float(R[a, a]) if len(R) else 0.0
        if s == 0:
            continue
        x, y, w, d = A[a], B[a], W[a], D[a]
        _add_rows(x, D, S[a], moved, n_moved)
        if len(R):
            _add_rows(y, D, R[a], moved, n_moved)
        xw = 0.0
        for j in range(k):
            g[j] = n_lambda * w[j] + y[j] - 2 * x[j]
            xw += x[j] * w[j]
        _add_rows(g, G, x, places, _nonzero(x, places))
        _add_rows(g, F, w, places, _nonzero(w, places))
        before = steps
        for j in range(k):
            c1 = 2 * float(g[j])
            if w[j] == 0 and c1 >= 0:
                continue
            c2 = s * G[j, j] + F[j, j] + 2 * (x[j] * w[j] + xw) - 2 * s + n_lambda + r
            if _gain(c1, c2, w[j]) < least:
                continue
            c3 = 2 * (x[j] + s * w[j])
            t, value = best_step(c1, c2, c3, s, -float(w[j]))
            if value >= -least:
                continue
            t, value = _relaxed(t, value, relax, -float(w[j]), c1, c2, c3, s)
            gained, steps = gained - value, steps + 1
            step, wj, xj, sj = T(t), w[j], x[j], T(s)
            d[j] = step
            Gj, Fj = _rank_two(G, j, step, w, T(t * t)), _rank_two(F, j, step, x, T(t * t * s))
            for i in range(k):
                g[i] += step * (w[i] * xj + x[i] * wj + sj * Gj[i] + Fj[i])
            g[j] += T(2 * t * xw + t * t * (xj + s * wj) + t * (n_lambda + r - 2 * s))
            xw += t * (xj + s * wj) + t * t * s
            w[j] += step
            x[j] += T(t * s)
        if steps > before:
            moved[n_moved] = a
            n_moved += 1
    return gained, steps


@_serial
def visit_shared(A, B, S, B_more, R, squares, W, U, F, G, weights, relax, least, active, both, gains, D, E):
    """Update the active genes of one block once, in model 2: W with the decoders; if `both`, then W without them."""
    # A, B : (donors, genes, k), W S_d and V_d S_d for these genes. S : (donors, genes, genes), S_d between these genes.
    # B_more : B of `visit`. weights : n λ_W, n λ_U. W, U, F, G and gains (genes,) are updated; D receives the change of
    # W, and E that of V, equal for all donors. Returns change of Σ tr V_d S_d Wᵀ, gain, number of steps.
    m, n_genes, k = A.shape
    T, n_lambda, n_lambda_U = W.dtype.type, weights[0], weights[1]
    cross, gained, steps = 0.0, 0.0, 0
    x, y, v, f, g = np.empty((5, m, k), W.dtype)
    xv, places, moved, n_moved = np.empty(m), np.empty(k, np.int64), np.empty(n_genes, np.int64), 0
    for a in range(n_genes):
        if not active[a]:
            continue
        w, y_more, s_all, r = W[a], B_more[a], 0.0, float(R[a, a]) if len(R) else 0.0
        for d in range(m):
            s_all += squares[d, a]
        if s_all == 0:
            continue
        for d in range(m):
            x[d], y[d], f[d], g[d], xv[d] = 0, 0, 0, 0, 0
            _add_rows(x[d], D, S[d, a], moved, n_moved)
            _add_rows(y[d], E, S[d, a], moved, n_moved)
            for j in range(k):
                x[d, j] += A[d, a, j]
                y[d, j] += B[d, a, j]
                v[d, j] = w[j] + U[d, a, j]
                xv[d] += x[d, j] * v[d, j]
            _add_rows(f[d], F[d], v[d], places, _nonzero(v[d], places))
            _add_rows(g[d], G[d], x[d], places, _nonzero(x[d], places))
        if len(R):
            _add_rows(y_more, D, R[a], moved, n_moved)
        before, gained_before = steps, gained
        for j in range(k):
            # W_aj and all V_aj change by t
            c1 = n_lambda * float(w[j]) + float(y_more[j])
            for d in range(m):
                c1 += float(f[d, j]) + float(g[d, j]) - float(x[d, j]) - float(y[d, j])
            c1, c2, c3 = 2 * c1, n_lambda + r, 0.0
            if w[j] > 0 or c1 < 0:
                for d in range(m):
                    s, xj = squares[d, a], x[d, j]
                    c2 += s * G[d, j, j] + F[d, j, j] + 2 * (xj * v[d, j] + xv[d]) - 2 * s
                    c3 += 2 * (xj + s * v[d, j])
                if _gain(c1, c2, w[j]) >= least:
                    t, value = best_step(c1, c2, c3, s_all, -float(w[j]))
                    if value < -least:
                        t, value = _relaxed(t, value, relax, -float(w[j]), c1, c2, c3, s_all)
                        gained, steps, step = gained - value, steps + 1, T(t)
                        w[j] += step
                        D[a, j] += step
                        E[a, j] += step
                        y_more[j] += T(t * r)
                        for d in range(m):
                            s, xj, yj, vj = squares[d, a], x[d, j], y[d, j], v[d, j]
                            sj, Gj = T(s), _rank_two(G[d], j, step, v[d], T(t * t))
                            Fj = _rank_two(F[d], j, step, x[d], T(t * t * s))
                            for i in range(k):
                                g[d, i] += step * (v[d, i] * xj + sj * Gj[i])
                                f[d, i] += step * (x[d, i] * vj + Fj[i])
                            g[d, j] += T(t * xv[d] + t * t * xj)
                            f[d, j] += T(t * xv[d] + t * t * s * vj)
                            cross += t * (xj + yj) + t * t * s
                            xv[d] += t * (xj + s * vj) + t * t * s
                            x[d, j] += T(t * s)
                            y[d, j] += T(t * s)
                            v[d, j] += step
            if not both:
                continue
            # W_aj changes by t and all U_aj by -t: only the encoder changes
            high, c1, c2 = np.inf, n_lambda * float(w[j]) + float(y_more[j]), n_lambda + m * n_lambda_U + r
            for d in range(m):
                u = float(U[d, a, j])
                c1 += float(g[d, j]) - float(y[d, j]) - n_lambda_U * u
                c2 += squares[d, a] * G[d, j, j]
                high = min(high, u)
            low, c1 = -float(w[j]), 2 * c1
            t = min(max(-0.5 * c1 / c2, low), high) if c2 > 0 else 0.0
            value = t * (c1 + t * c2)
            if value >= -least:
                continue
            far = min(max(relax * t, low), high)
            if far * (c1 + far * c2) < 0:
                t, value = far, far * (c1 + far * c2)
            gained, steps, step = gained - value, steps + 1, T(t)
            w[j] += step
            D[a, j] += step
            y_more[j] += T(t * r)
            for d in range(m):
                s, xj, vj = squares[d, a], x[d, j], v[d, j]
                sj, Gj = T(s), G[d, j]
                U[d, a, j] = max(U[d, a, j] - step, 0)
                _rank_two(F[d], j, step, x[d], T(t * t * s))
                for i in range(k):
                    g[d, i] += step * (sj * T(Gj[i]))
                    f[d, i] += step * (x[d, i] * vj)
                f[d, j] += T(t * xv[d] + t * t * s * vj)
                cross += t * y[d, j]
                xv[d] += t * s * vj
                x[d, j] += T(t * s)
        gains[a] = gained - gained_before
        if steps > before:
            moved[n_moved] = a
            n_moved += 1
    return cross, gained, steps


@_parallel
def visit_own(A, S, D, moved, W, U, F, G, n_lambda, relax, least, visits, active, gains, DV):
    """Update U of the active genes of one block `visits` times, in model 2. Return as `visit_shared`, per donor."""
    # The objective is quadratic in U. A : (donors, genes, k), W S_d before the change D of W in the genes `moved`.
    # A, U, G, DV (change of V) and gains (donors, genes) are updated.
    m, n_genes, k = A.shape
    T = W.dtype.type
    done = np.zeros((m, 3))
    for d in prange(m):
        f, v, places = np.empty(k, W.dtype), np.empty(k, W.dtype), np.empty(k, np.int64)
        Fd, Gd = F[d], G[d]
        cross, gained, steps = 0.0, 0.0, 0
        for a in range(n_genes):
            if not active[a]:
                continue
            x, u, w, dv, gained_before = A[d, a], U[d, a], W[a], DV[d, a], gained
            _add_rows(x, D, S[d, a], moved, len(moved))
            for j in range(k):
                v[j] = w[j] + u[j]
                f[j] = n_lambda * u[j] - x[j]
            _add_rows(f, Fd, v, places, _nonzero(v, places))
            for _ in range(visits):
                for j in range(k):
                    c1 = 2 * float(f[j])
                    if u[j] == 0 and c1 >= 0:
                        continue
                    c2 = Fd[j, j] + n_lambda
                    t = max(-0.5 * c1 / c2, -float(u[j]))
                    value = t * (c1 + t * c2)
                    if value >= -least:
                        continue
                    t, value = _relaxed(t, value, relax, -float(u[j]), c1, c2, 0.0, 0.0)
                    gained, steps, step = gained - value, steps + 1, T(t)
                    _rank_two(Gd, j, step, v, T(t * t))
                    Fj = Fd[j]
                    for i in range(k):
                        f[i] += step * Fj[i]
                    f[j] += n_lambda * step
                    u[j] += step
                    v[j] += step
                    dv[j] += step
                    cross += t * x[j]
            gains[d, a] = gained - gained_before
        done[d, 0], done[d, 1], done[d, 2] = cross, gained, steps
    return done
