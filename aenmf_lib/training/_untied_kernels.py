"""Compiled loop of coordinate descent for an untied encoder. Arrays have the precision of X unless float64 is noted."""

import numpy as np

from aenmf_lib.training._kernels import _add_rows, _nonzero, _part, _rank_two, _relaxed, _serial

CONSTANT = 1e-9  # usages whose variance is below this share of their mean square are constant; their penalty is 0


@_part
def _share(q, v, f):
    """Return q / v, the share of the variance that is between donors, or 0 for constant usages. f: HᵀH, v: n Var(h)."""
    return max(q, 0.0) / v if v > CONSTANT * f else 0.0


@_serial
def visit_untied(products, S, squares, factors, inner, donors, penalty, weights, limits, changes):
    """Update W, then E, of each gene of one block. Return the gain, the number of steps, and the change of tr(EᵀSW)."""
    # factors : E and W, (genes, k). products : A = S E and Y = S W, (genes, k). S : between these genes; squares : its
    # diagonal in float64. inner : F = EᵀSE and G = WᵀW, (k, k) float64. changes : receive ΔE and ΔW.
    # donors : UᵀJ and MᵀV with J = M E and V = U W, (genes, k); UᵀM and its transpose
    #          between these genes, empty without donors.
    # penalty : B = PᵀPE, (genes, k); PᵀP between these genes, empty without penalty; in float64: sums of the columns
    #           of X, (genes,); ‖P e_j‖² and sums of the usages, (k,). weights : n λ_W / 2, weight of each share, n.
    # limits : over-relaxation, smallest gain of a step, visits of W.
    (A, Y), (E, W), (F, G), (DE, DW) = products, factors, inner, changes
    (UJ, MV, UM, MU), (B, R, totals, q, m) = donors, penalty
    (half, gamma, n), (relax, least, visits) = weights, limits
    n_genes, k = E.shape
    T = E.dtype.type
    lam, g, old_w, places = T(half), np.empty(k, E.dtype), np.empty(k, E.dtype), np.empty(k, np.int64)
    moved_E, moved_W, n_E, n_W = np.empty(n_genes, np.int64), np.empty(n_genes, np.int64), 0, 0
    gained, steps, cross = 0.0, 0, 0.0
    # Copies of F and G in the precision of X change after each step, F and G at the end, in float64.
    Fx, Gx, (half_F, half_G) = F.astype(E.dtype), G.astype(E.dtype), np.zeros((2, k, k))
    for a in range(n_genes):
        s, total = squares[a], totals[a]
        if s == 0:
            continue
        x, y, e, w, b, uj, mv = A[a], Y[a], E[a], W[a], B[a], UJ[a], MV[a]
        _add_rows(x, DE, S[a], moved_E, n_E)
        _add_rows(y, DW, S[a], moved_W, n_W)
        r = u = 0.0
        if len(R):
            _add_rows(b, DE, R[a], moved_E, n_E)
            r = float(R[a, a])
        if len(UM):
            _add_rows(uj, DE, UM[a], moved_E, n_E)
            _add_rows(mv, DW, MU[a], moved_W, n_W)
            u = float(UM[a, a])
        # the objective is quadratic in W
        before = steps
        for j in range(k):
            g[j] = lam * w[j] - x[j] + uj[j]
            old_w[j] = w[j]
        _add_rows(g, Fx, w, places, _nonzero(w, places))
        for _ in range(visits):
            for j in range(k):
                c1, c2, low = 2 * float(g[j]), Fx[j, j] + half, -float(w[j])
                if (low == 0 and c1 >= 0) or c2 <= 0:
                    continue
                t = max(-0.5 * c1 / c2, low)
                value = t * (c1 + t * c2)
                if value >= -least:
                    continue
                t, value = _relaxed(t, value, relax, low, c1, c2, 0.0, 0.0)
                gained, steps, step = gained - value, steps + 1, T(t)
                Fj = Fx[j]
                for i in range(k):
                    g[i] += step * Fj[i]
                g[j] += lam * step
                w[j] += step
                DW[a, j] += step
                cross += t * x[j]
                y[j] += T(t * s)
                mv[j] += T(t * u)
        if steps > before:
            moved_W[n_W] = a
            n_W += 1
            for j in range(k):  # only now, because the steps in W do not read G
                if w[j] != old_w[j]:
                    step = w[j] - old_w[j]
                    _rank_two(Gx, half_G, j, step, old_w, float(step) ** 2)
                    old_w[j] = w[j]
        # in E, a quadratic function and the penalty, a ratio of two quadratic functions
        before = steps
        for j in range(k):
            g[j] = lam * e[j] - y[j] + mv[j]
        _add_rows(g, Gx, x, places, _nonzero(x, places))
        for j in range(k):
            c1, c2, low = 2 * float(g[j]), s * Gx[j, j] + half, -float(e[j])
            d1, d2, old, v, v1, v2, qj, bj = c1, c2, 0.0, 0.0, 0.0, 0.0, q[j], float(b[j])
            f = F[j, j] + 2 * half_F[j, j]  # in float64, for the difference below
            if gamma > 0:
                v, v1, v2 = f - m[j] * m[j] / n, 2 * (float(x[j]) - m[j] * total / n), s - total * total / n
                old = _share(qj, v, f)
                if v > CONSTANT * f:
                    slope = (2 * bj - old * v1) / v
                    d1 += gamma * slope
                    d2 = max(d2 + gamma * (r - slope * v1 - old * v2) / v, c2)
            if (low == 0 and d1 >= 0) or d2 <= 0:
                continue
            t, best, value = max(-0.5 * d1 / d2, low), 0.0, 0.0
            for trial in range(3):
                far = max(relax * t, low) if trial == 0 else (t if trial == 1 else 0.25 * t)
                there = far * (c1 + far * c2)
                if gamma > 0:
                    f_there = f + far * (2 * float(x[j]) + far * s)
                    there += gamma * (_share(qj + far * (2 * bj + far * r), v + far * (v1 + far * v2), f_there) - old)
                if there < value:
                    best, value = far, there
                    break
            if value >= -least:
                continue
            gained, steps, step = gained - value, steps + 1, T(best)
            t = float(step)
            _rank_two(Fx, half_F, j, step, x, t * t * s)
            Gj, sj = Gx[j], T(s * t)
            for i in range(k):
                g[i] += sj * Gj[i]
            g[j] += lam * step
            e[j] += step
            DE[a, j] += step
            cross += t * y[j]
            x[j] += T(t * s)
            q[j] += t * (2 * bj + t * r)
            m[j] += t * total
        if steps > before:
            moved_E[n_E] = a
            n_E += 1
    F += half_F + half_F.T
    G += half_G + half_G.T
    return gained, steps, cross
