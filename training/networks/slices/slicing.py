"""prototype"""
from __future__ import annotations
import logging, math, os
import torch
from torch import nn
from pwl_hf.training.networks.slices.axes import Axes, Layout, axes_of
from pwl_hf.training.networks.slices.moments import observe, Moments, rows_of

def spaced(s, t): return torch.arange(s) * t // s

def css(C, s, M=None, order_only=False):
    """greedy column subset selection"""
    S = C.clone(); t = len(S)
    MS = S.clone() if M is None else M @ S
    chosen = []
    free = torch.ones(t, dtype=torch.bool)
    tol = 1e-10 * C.diagonal().mean().clamp_min(1e-30)
    for _ in range(s):
        d = S.diagonal().clamp_min(0)
        gain = torch.where(d > tol, (S * MS).sum(0) / d.clamp_min(1e-300), torch.zeros_like(d))
        gain[~free] = -1
        j = int(gain.argmax()); chosen.append(j); free[j] = False
        if d[j] > tol:
            r = S[j].clone(); c = MS[:, j].clone()
            S -= torch.outer(r, r) / d[j]
            MS -= torch.outer(c, r) / d[j]
    return torch.tensor(sorted(chosen))

def regress(C, kept, ridge=1e-3):
    """A (t,s): kept channels exactly, the rest from them"""
    t, s = len(C), len(kept)
    Ckk = C[kept][:, kept]
    lam = ridge * Ckk.diagonal().mean()
    A = torch.linalg.solve(Ckk + lam * torch.eye(s, dtype=C.dtype), C[kept]).T.contiguous()
    A[kept] = torch.eye(s, dtype=C.dtype)
    return A

class Maps:
    def __init__(self): self.index = {}; self.back = {}; self.down = {}

def flat_index(layout, axes, maps):
    """positions kept of the flattened layout"""
    ts, _ = axes.lengths(layout)
    idx = torch.zeros(1, dtype=torch.long)
    for f, t in zip(layout, ts):
        i = maps.index[f] if isinstance(f, str) else torch.arange(f)
        idx = (idx[:, None] * t + i[None]).reshape(-1)
    return idx

def dense(layout, axes, maps, which):
    """block-diagonal over copies"""
    base = tuple(f for f in layout if isinstance(f, str)); k = math.prod(f for f in layout if isinstance(f, int))
    m = getattr(maps, which).get(base)
    return None if m is None else (m if k == 1 else torch.block_diag(*[m] * k))

def through(tensor, dims, axes, maps):
    for d in dims:
        m = dense(d.layout, axes, maps, "back") if d.role == "reads" else dense(d.layout, axes, maps, "down") if d.role == "writes" else None
        if m is None:
            key = tuple(d.layout)
            if d.role in ("writes", "acts") or True:
                idx = maps.flat[key] if key in getattr(maps, "flat", {}) else flat_index(d.layout, axes, maps)
            tensor = tensor.index_select(d.number, idx)
        else:
            w = tensor.movedim(d.number, -1).double() @ (m if d.role == "reads" else m.T)
            tensor = w.movedim(-1, d.number).to(tensor.dtype)
    return tensor

@torch.no_grad()
def slice_student(model, pairs, batches, opts):
    """opts: choose even|scale|css ; reads drop|ls ; decoder repeat|drop|ls ; heads spread|whole|best ; stream: select|rotate; gain"""
    axes = axes_of(model, pairs); maps = Maps(); maps.flat = {}
    obs = observe(model, axes, batches)
    T = dict(model.teacher.state_dict())
    streams = {a for a in axes.sizes if a.startswith("stream")}
    # consumers' gram per layout
    gram = {}
    for path, dims in axes.tensors.items():
        for d in dims:
            if d.role == "reads":
                w = T[axes.sources[path]].double().movedim(d.number, -1).reshape(-1, T[axes.sources[path]].shape[d.number])
                base = tuple(f for f in d.layout if isinstance(f, str)); k = math.prod(f for f in d.layout if isinstance(f, int))
                w = w.reshape(-1, w.shape[1] // k)
                gram[base] = gram.get(base, 0) + w.T @ w
    # unit outputs for the streams
    choose = opts["choose"]
    for axis, (t, s) in axes.sizes.items():
        if axis.endswith((".heads", ".queries", ".head width")): continue
        C = obs.read[(axis,)].second if (axis,) in obs.read else None
        if s == t or choose == "even" or C is None: idx = spaced(s, t)
        elif choose == "scale": idx = C.diagonal().topk(s).indices.sort().values
        elif choose == "wanda": idx = (C.diagonal() * gram[(axis,)].diagonal()).topk(s).indices.sort().values
        elif choose == "css": idx = css(C / C.diagonal().mean(), s, gram[(axis,)])
        elif choose == "cssplain": idx = css(C / C.diagonal().mean(), s)
        maps.index[axis] = idx
        if opts["reads"] == "ls" and s < t: maps.back[(axis,)] = regress(C, idx, opts.get("ridge", 1e-3))
    # heads
    for axis, (t, s) in axes.sizes.items():
        if axis.endswith((".heads", ".queries", ".head width")): maps.index[axis] = spaced(s, t)
    for layout, mom in obs.read.items():
        if len(layout) == 3:
            ts, ss = axes.lengths(layout)
            if opts["heads"] == "best" and ss[0] < ts[0]:
                b = ts[1] * ts[2]; S = mom.second / mom.second.diagonal().mean(); M = gram[layout]; kept = []
                for _ in range(ss[0]):
                    best = None
                    for h in range(ts[0]):
                        if h in kept: continue
                        B = slice(h * b, h * b + b); SB = S[:, B]
                        g = torch.trace(torch.linalg.lstsq(S[B, B] + 1e-6 * torch.eye(b, dtype=S.dtype), (SB.T @ M @ SB)).solution)
                        if best is None or g > best[0]: best = (g, h)
                    h = best[1]; kept.append(h); B = slice(h * b, h * b + b)
                    S = S - S[:, B] @ torch.linalg.solve(S[B, B] + 1e-6 * torch.eye(b, dtype=S.dtype), S[B, :])
                maps.index[layout[0]] = torch.tensor(sorted(kept))
            if opts["heads"] == "spread":
                n, m = math.prod(ts), math.prod(ss)
                maps.flat[layout] = spaced(m, n)
                maps.flat[(layout[0], layout[2])] = spaced(ss[0] * ss[2], ts[0] * ts[2])
            if opts["reads"] == "ls" and math.prod(ss) < math.prod(ts):
                maps.back[layout] = regress(mom.second, maps.flat.get(layout, flat_index(layout, axes, maps)), opts.get("ridge", 1e-3))
    rot = {}
    if opts.get("stream") == "rotate":
        (axis,) = streams
        t, s = axes.sizes[axis]
        norms = [p for p in obs.order if p in obs.normalised and any(axes.sources[q].rpartition(".")[0] == p for q in axes.sources)]
        cov = sum(obs.normalised[p].second / obs.normalised[p].count for p in norms)
        if opts.get("pca") == "raw": cov = sum(obs.raw[p] for p in norms)
        centred = isinstance(model.teacher.get_submodule(norms[0]), nn.LayerNorm)
        n = s - 1 if centred else s
        V = torch.linalg.eigh(cov).eigenvectors.flip(-1)[:, :n]
        if centred:
            H = torch.zeros(s, n, dtype=torch.float64)
            for k in range(1, s):
                H[:k, k - 1] = 1; H[k, k - 1] = -k; H[:, k - 1] /= math.sqrt(k * (k + 1))
            if opts.get("spin"):
                g = torch.Generator().manual_seed(0); H = H @ torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
            M = torch.eye(t, dtype=torch.float64) - 1 / t
        else: H = torch.eye(s, dtype=torch.float64); M = torch.eye(t, dtype=torch.float64)
        P = H @ V.T @ M; A = V @ H.T
        maps.down[(axis,)] = P; maps.back[(axis,)] = A
        fed = {}; last = None
        for p in obs.order:
            if p in norms: last = p
            else: fed[p] = last
        for p in norms:
            C = obs.normalised[p].second / obs.normalised[p].count   # trace = t
            rho = torch.sqrt(torch.trace(V.T @ C @ V) / torch.trace(C))
            rot[p] = float(rho * math.sqrt(t / s)) if opts.get("factor", True) else 1.0
    mine = dict(model.student.state_dict())
    extra = {}
    for path, dims in axes.tensors.items():
        src = axes.sources[path]; w = T[src]
        mod, _, leaf = src.rpartition(".")
        if mod in rot:
            mine[path].fill_(rot[mod] if leaf == "weight" else 0.0); continue
        if rot and leaf == "weight" and fed.get(mod) and any(d.role == "reads" and d.layout[-1] in streams for d in dims):
            nw, nb = T[fed[mod] + ".weight"], T.get(fed[mod] + ".bias")
            k = w.shape[1] // len(nw)
            if nb is not None: extra[src[:-6] + "bias"] = (w.double() @ nb.double().repeat(k))
            w = w * nw.repeat(k)
        if rot and leaf == "bias" and src in extra: w = (w.double() + extra[src]).to(w.dtype)
        mine[path].copy_(through(w, dims, axes, maps))
    # converters
    for b, axis in axes.streams.items():
        enc, dec = model.encoders[str(b)], model.decoders[str(b)]
        t, s = axes.sizes[axis]
        i = maps.index[axis]
        if (axis,) in maps.down: P, A = maps.down[(axis,)], maps.back[(axis,)]
        else:
            P = torch.zeros(s, t, dtype=torch.float64); P[torch.arange(s), i] = 1
            A = P.T
            if opts["decoder"] == "repeat":
                A = torch.zeros(t, s, dtype=torch.float64); A[torch.arange(t), torch.arange(t) * s // t] = 1
            elif opts["decoder"] == "ls":
                A = regress(obs.read[(axis,)].second, i)
        if opts["decoder"] != "random":
            dec.weight.copy_(A); dec.bias.zero_()
        if opts.get("encoder") != "random":
            enc.weight.copy_(P); enc.bias.zero_()
    print("SLICED", opts, flush=True)
    return axes, maps
