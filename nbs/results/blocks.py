r"""What do the losses of large batches take of memory and time, in blocks and with the whole matrix of similarities?

Forward and backward on `n` embeddings (two views of half as many images), on one thread or as many as OMP_NUM_THREADS
says. Each measurement is a process of its own: the peak is the highest resident memory that the system saw (VmHWM),
less what was there before. The two ways take turns, `times` times; kept is the best time of each, and the ratio of
the best. Both are held against 64 bits, computed a few rows at a time: largest difference of the loss over the loss,
and of the gradient over its largest entry.

    OMP_NUM_THREADS=1 python nbs/results/blocks.py
"""
import math, sys, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from measured import *

def scores(z, y, temp, name):
    "Loss and its gradient on the rows of `z` in 64 bits, 256 rows at a time"
    import torch
    z,n = z.double(),len(z)//2
    norm = z.norm(dim=1, keepdim=True)
    u,i = z/norm,torch.arange(len(z))
    loss,du = 0.,torch.zeros_like(u)
    for at in i.split(256):
        s = u[at]@u.T/temp
        own = i==at[:,None]
        if name=='sup_con': target = (y[at,None]==y) & ~own
        else: target = (i-at[:,None]).abs()==n
        target = target/target.sum(1, keepdim=True)
        left_out = (i-at[:,None])%n==0 if name=='dcl' else own
        lse = s.masked_fill(left_out, -math.inf).logsumexp(1, keepdim=True)
        loss += (lse[:,0]-(s*target).sum(1)).sum().item()
        g = ((s-lse).exp().masked_fill_(left_out, 0.)-target)/temp/len(z)
        du[at] += g@u
        du += g.T@u[at]
    return loss/len(z),(du-(du*u).sum(1, keepdim=True)*u)/norm

def measure(name, limit, n, dim, exact):
    "In a process of its own"
    import torch
    from fastai_contrastive.blocks import block_limit
    from fastai_contrastive.losses import nt_xent, sup_con
    from fastai_contrastive.objectives.dcl import dcl
    torch.manual_seed(0)
    a = torch.randn(n//2, dim)
    z,y,temp = torch.cat([a, a+torch.randn(n//2, dim)]),(torch.arange(n//2)//10).repeat(2),.2
    f = dict(nt_xent=lambda z: nt_xent(*z.chunk(2), temp), dcl=lambda z: dcl(*z.chunk(2), temp),
        sup_con=lambda z: sup_con(z, y, temp))[name]
    def go(z):
        z = z.clone().requires_grad_()
        l = f(z)
        l.backward()
        return l.detach(),z.grad
    with block_limit(limit):
        go(z[:1024]) if name!='sup_con' else None
        was,start = forget_peak(),time.perf_counter()
        l,g = go(z)
        took = time.perf_counter()-start
    res = dict(seconds=took, peak=resident('VmHWM')-was)
    if exact:
        want,dz = scores(z, y, temp, name)
        res.update(loss_off=abs(l.item()-want)/abs(want), grad_off=((g-dz).abs().max()/dz.abs().max()).item())
    print(res)

@call_parse
def main(
    n:int=32768, # Embeddings
    dim:int=128, # Width of an embedding
    times:int=2, # Turns
    names:str='nt_xent,dcl,sup_con', # Which losses
    out:str='nbs/results/blocks.json', # Where the row goes
    one:str='', # For its own use
):
    "Measure the losses in blocks and whole, in turns"
    inf = math.inf
    if one: return measure(*eval(one, dict(inf=inf)))
    from shared import command, write_row
    from fastai_contrastive.recipes import provenance
    rows = {}
    for name in names.split(','):
        ways = dict(whole=inf, blocks=2**22)
        got = [{k:in_process(__file__, name, l, n, dim, not i) for k,l in ways.items()} for i in range(times)]
        row = {k:dict(seconds=round(min(o[k]['seconds'] for o in got), 2), peak_mb=round(got[0][k]['peak']/2**20),
            **{o:float(f'{got[0][k][o]:.1e}') for o in ('loss_off','grad_off')}) for k in ('whole','blocks')}
        row['time'],row['memory'] = (round(row['blocks'][k]/row['whole'][k], 4) for k in ('seconds','peak_mb'))
        print(name, rows.setdefault(name, row))
    write_row(dict(n=n, dim=dim, losses=rows, **provenance(), command=command()), Path(out))
