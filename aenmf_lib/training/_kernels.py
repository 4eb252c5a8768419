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
def _with_weight(weights, rows, n, places):
    """Store those of the first n `rows` whose weight is not 0 in `places`, and return their number."""
    found = 0
    for q in range(n):
        places[found] = rows[q]
        found += weights[rows[q]] != 0
    return found


@_part
def _rank_two(M, half, j, t, x, extra):
    """``M += t (e_j xᵀ + x e_jᵀ) + extra e_j e_jᵀ`` for a symmetric M; return row j.

    One row of `half` also changes, so that ``half + halfᵀ`` changes as M does, in float64.
    """
    row, exact = M[j], half[j]
    for i in range(len(x)):
        row[i] += t * x[i]
        exact[i] += float(t) * float(x[i])
    row[j] += t * x[j] + M.dtype.type(extra)
    exact[j] += 0.5 * extra
    for i in range(len(x)):
        M[i, j] = row[i]
    return row


@_part
def _add_half(half, before, after):
    """Change `half` so that ``half + halfᵀ`` changes by ``after afterᵀ − before beforeᵀ``, in float64."""
    for j in range(len(after)):
        change = float(after[j]) - float(before[j])
        if change != 0:
            for i in range(len(after)):
                half[j, i] += 0.5 * change * (float(before[i]) + float(after[i]))


@_serial
def visit(A, B, S, R, squares, W, F, G, n_lambda, relax, least, D):
    """Update W once for one block of genes, in AE-NMF and model 1. Return the gain and the number of steps."""
    # A, B : (genes, k), W S and W R for these genes. S, R : (genes, genes), between these genes; R may be empty.
    # W, F and G are updated; D receives the change of W. Steps that gain less than `least` are skipped.
    n_genes, k = W.shape
    T = W.dtype.type
    g, places, (near, moved), n_moved = np.empty(k, W.dtype), np.empty(k, np.int64), np.empty((2, n_genes), np.int64), 0
    gained, steps = 0.0, 0
    # Copies of F and G in the precision of X change after each step, F and G at the end, in float64.
    Fx, Gx, (half_F, half_G) = F.astype(W.dtype), G.astype(W.dtype), np.zeros((2, k, k))
    for a in range(n_genes):
        s, r = squares[a], float(R[a, a]) if len(R) else 0.0
        if s == 0:
            continue
        x, y, w, d = A[a], B[a], W[a], D[a]
        _add_rows(x, D, S[a], near, _with_weight(S[a], moved, n_moved, near))
        if len(R):
            _add_rows(y, D, R[a], moved, n_moved)
        xw = 0.0
        for j in range(k):
            g[j] = n_lambda * w[j] + y[j] - 2 * x[j]
            xw += x[j] * w[j]
        _add_rows(g, Gx, x, places, _nonzero(x, places))
        _add_rows(g, Fx, w, places, _nonzero(w, places))
        before = steps
        for j in range(k):
            c1 = 2 * float(g[j])
            if w[j] == 0 and c1 >= 0:
                continue
            c2 = s * Gx[j, j] + Fx[j, j] + 2 * (x[j] * w[j] + xw) - 2 * s + n_lambda + r
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
            Gj, Fj = _rank_two(Gx, half_G, j, step, w, t * t), _rank_two(Fx, half_F, j, step, x, t * t * s)
            for i in range(k):
                g[i] += step * (w[i] * xj + x[i] * wj + sj * Gj[i] + Fj[i])
            g[j] += T(2 * t * xw + t * t * (xj + s * wj) + t * (n_lambda + r - 2 * s))
            xw += t * (xj + s * wj) + t * t * s
            w[j] += step
            x[j] += T(t * s)
        if steps > before:
            moved[n_moved] = a
            n_moved += 1
    F += half_F + half_F.T
    G += half_G + half_G.T
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
    # f = F v − x and g = G x − y, summed over the donors. Half the gradient is f + g, or g without the decoders, plus
    # terms of W, U, R. Copies of F and G in the precision of X change after each step, F and G at the end, in float64.
    (x, y, v), (f, g, sum_u, least_u) = np.empty((3, m, k), W.dtype), np.empty((4, k), W.dtype)
    Fd, Gd, (half_F, half_G) = F.astype(W.dtype), G.astype(W.dtype), np.zeros((2, m, k, k))
    xv, places, (near, moved), n_moved = np.empty(m), np.empty(k, np.int64), np.empty((2, n_genes), np.int64), 0
    for a in range(n_genes):
        if not active[a]:
            continue
        w, y_more, s_all, r = W[a], B_more[a], squares[:, a].sum(), float(R[a, a]) if len(R) else 0.0
        if s_all == 0:
            continue
        for j in range(k):
            f[j], g[j], sum_u[j], least_u[j] = 0, 0, 0, np.inf
        for d in range(m):
            xd, yd, vd, u, total = x[d], y[d], v[d], U[d, a], 0.0
            xd[:], yd[:] = A[d, a], B[d, a]
            n_near = _with_weight(S[d, a], moved, n_moved, near)
            _add_rows(xd, D, S[d, a], near, n_near)
            _add_rows(yd, E, S[d, a], near, n_near)
            for j in range(k):
                vd[j] = w[j] + u[j]
                f[j] -= xd[j]
                g[j] -= yd[j]
                sum_u[j] += u[j]
                least_u[j] = min(least_u[j], u[j])
            for j in range(k):
                total += float(xd[j]) * float(vd[j])
            xv[d] = total
            _add_rows(f, Fd[d], vd, places, _nonzero(vd, places))
            _add_rows(g, Gd[d], xd, places, _nonzero(xd, places))
        if len(R):
            _add_rows(y_more, D, R[a], moved, n_moved)
        before, gained_before = steps, gained
        for j in range(k):
            # W_aj and all V_aj change by t
            c1 = 2 * (n_lambda * float(w[j]) + float(y_more[j]) + float(f[j]) + float(g[j]))
            c2, c3 = n_lambda + r, 0.0
            if w[j] > 0 or c1 < 0:
                for d in range(m):
                    s, xj = squares[d, a], x[d, j]
                    c2 += s * Gd[d, j, j] + Fd[d, j, j] + 2 * (xj * v[d, j] + xv[d]) - 2 * s
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
                            s, xd, vd, xj, yj, vj = squares[d, a], x[d], v[d], x[d, j], y[d, j], v[d, j]
                            ts, sj, Gj = T(t * s), T(s), _rank_two(Gd[d], half_G[d], j, step, vd, t * t)
                            Fj = _rank_two(Fd[d], half_F[d], j, step, xd, t * t * s)
                            for i in range(k):
                                g[i] += step * (vd[i] * xj + sj * Gj[i])
                                f[i] += step * (xd[i] * vj + Fj[i])
                            g[j] += T(t * xv[d] + t * t * xj) - ts
                            f[j] += T(t * xv[d] + t * t * s * vj) - ts
                            cross += t * (xj + yj) + t * t * s
                            xv[d] += t * (xj + s * vj) + t * t * s
                            xd[j] += ts
                            y[d, j] += ts
                            vd[j] += step
            if not both:
                continue
            # W_aj changes by t and all U_aj by -t: only the encoder changes
            c1 = 2 * (n_lambda * float(w[j]) + float(y_more[j]) + float(g[j]) - n_lambda_U * float(sum_u[j]))
            low, high = -float(w[j]), float(least_u[j])
            if (c1 >= 0 and low == 0) or (c1 <= 0 and high == 0):
                continue
            c2 = n_lambda + m * n_lambda_U + r
            for d in range(m):
                c2 += squares[d, a] * Gd[d, j, j]
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
            sum_u[j], least_u[j] = 0, np.inf
            for d in range(m):
                s, xd, xj, vj, Gj = squares[d, a], x[d], x[d, j], v[d, j], Gd[d, j]
                u, sj = max(U[d, a, j] - step, 0), T(s)
                U[d, a, j] = u
                sum_u[j] += u
                least_u[j] = min(least_u[j], u)
                _rank_two(Fd[d], half_F[d], j, step, xd, t * t * s)
                for i in range(k):
                    g[i] += step * (sj * Gj[i])
                    f[i] += step * (xd[i] * vj)
                f[j] += T(t * xv[d] + t * t * s * vj) - T(t * s)
                cross += t * y[d, j]
                xv[d] += t * s * vj
                xd[j] += T(t * s)
        gains[a] = gained - gained_before
        if steps > before:
            moved[n_moved] = a
            n_moved += 1
    for d in range(m):
        F[d] += half_F[d] + half_F[d].T
        G[d] += half_G[d] + half_G[d].T
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
        f, v, before = np.empty((3, k), W.dtype)
        places, near = np.empty(k, np.int64), np.empty(n_genes, np.int64)
        Fd, half = F[d].astype(W.dtype), np.zeros((k, k))  # F is constant, G changes by half and its transpose
        cross, gained, steps = 0.0, 0.0, 0
        for a in range(n_genes):
            if not active[a]:
                continue
            x, u, w, dv, gained_before = A[d, a], U[d, a], W[a], DV[d, a], gained
            _add_rows(x, D, S[d, a], near, _with_weight(S[d, a], moved, len(moved), near))
            for j in range(k):
                v[j] = w[j] + u[j]
                before[j] = v[j]
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
                    Fj = Fd[j]
                    for i in range(k):
                        f[i] += step * Fj[i]
                    f[j] += n_lambda * step
                    u[j] += step
                    v[j] += step
                    dv[j] += step
                    cross += t * x[j]
            gains[d, a] = gained - gained_before
            if gained > gained_before:
                _add_half(half, before, v)
        G[d] += half + half.T
        done[d, 0], done[d, 1], done[d, 2] = cross, gained, steps
    return done
