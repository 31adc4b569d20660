r"""How many views a second, beside kornia's, lightly's and torchvision's of the same recipe?

SimCLR's: a random part of the image (.08 to 1 of its area), mirrored, jittered in colour (.8 .8 .8 .2) with a chance
of .8, grey with .2, blurred with .5; and SwAV's eight, two large and six small. All take turns in one process, and
what counts is the ratio of each round, of which the median is kept: a machine that is busy for a minute is so for all
of them. Each library gets what its users give it: kornia and this one a batch of floats, lightly images of PIL,
torchvision tensors of bytes. lightly normalises too, the others were not asked to.

    pip install -e '.[bench]'
    OMP_NUM_THREADS=2 python nbs/results/views.py --threads 2
"""
import json, os, platform, re, sys, time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from statistics import median
from fastcore.script import *
from torchvision.transforms import v2
from shared import *
from fastai_contrastive.recipes import provenance

# Side of the images, side of the views, number and side of the small ones
cases = {'128 from 160':(160,128,0,0), '64 from 80':(80,64,0,0), '64 from 64':(64,64,0,0), '2x128+6x48':(160,128,6,48)}

def width(side): return max(1, int(side*.1)//2)*2+1

def parts(big, small, n_small):
    "Of each kind of view: how many, side, and share of the area that it shows"
    return [(2,big,(.14,1.)),(n_small,small,(.05,.14))] if n_small else [(2,big,(.08,1.))]

def ours(pil, x, big, small, n_small):
    kw = dict(n_small=n_small, small_size=small, scale=(.14,1.), small_scale=(.05,.14)) if n_small else {}
    views = simclr_views(big, **kw)
    return lambda: views(x)

def of_kornia(pil, x, big, small, n_small):
    import kornia.augmentation as K
    def _pipe(s, scale): return K.AugmentationSequential(
        K.RandomResizedCrop((s,s), scale=scale), K.RandomHorizontalFlip(),
        K.ColorJitter(.8, .8, .8, .2, p=.8), K.RandomGrayscale(p=.2),
        K.RandomGaussianBlur((width(s),)*2, (.1,2.), p=.5), data_keys=['input'])
    pipes = [(n,_pipe(s, scale)) for n,s,scale in parts(big, small, n_small)]
    return lambda: [p(x) for n,p in pipes for _ in range(n)]

def of_lightly(pil, x, big, small, n_small):
    from lightly.transforms import SimCLRTransform, SwaVTransform
    t = SwaVTransform((big,small), (2,n_small)) if n_small else SimCLRTransform(big)
    return lambda: [torch.stack(o) for o in zip(*map(t, pil))]

def of_torchvision(pil, x, big, small, n_small):
    xs = (x*255).byte().unbind()
    def _pipe(s, scale): return v2.Compose([v2.RandomResizedCrop(s, scale, antialias=True), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(.8, .8, .8, .2)], .8), v2.RandomGrayscale(.2),
        v2.RandomApply([v2.GaussianBlur(width(s), (.1,2.))], .5), v2.ToDtype(torch.float32, scale=True)])
    pipes = [(n,_pipe(s, scale)) for n,s,scale in parts(big, small, n_small)]
    return lambda: [torch.stack([p(o) for o in xs]) for n,p in pipes for _ in range(n)]

libraries = dict(ours=ours, kornia=of_kornia, lightly=of_lightly, torchvision=of_torchvision)

def seconds(f, least):
    "Of one call, of as many as fill `least` seconds"
    start,n = time.perf_counter(),0
    while True:
        f()
        n,took = n+1,time.perf_counter()-start
        if took>=least: return took/n

def versions():
    res = {}
    for o in ('kornia','lightly'):
        try: res[o] = version(o)
        except PackageNotFoundError: res[o] = None
    return res

def measured(case, bs, repeats, least):
    "One row: images/s of each library, and how many times as fast ours is, by rounds"
    side,big,n_small,small = cases[case]
    pil = [Image.fromarray(np.uint8(255*o)) for o in synth_pictures(bs, side)]
    x = torch.stack([image2tensor(o) for o in pil]).float()/255
    fs = {k:f(pil, x, big, small, n_small) for k,f in libraries.items() if versions().get(k, True)}
    for f in fs.values(): f(),f()
    rounds = [{k:seconds(f, least) for k,f in fs.items()} for _ in range(repeats)]
    n = bs*(2+n_small)
    speeds = {k:round(n/median(r[k] for r in rounds)) for k in fs}
    ratios = {k:[round(r[k]/r['ours'], 2) for r in rounds] for k in fs if k!='ours'}
    return dict(kind='views', case=case, bs=bs, repeats=repeats, views_per_second=speeds,
        times={k:round(median(v), 2) for k,v in ratios.items()}, ratios=ratios)

def synth_pictures(n, side):
    "Smooth pictures with edges, values 0 to 1, (side, side, 3) each"
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.rand(n, 3, 9, 9, generator=g), (side,side), mode='bicubic').clamp(0,1)
    x[:,:,side//4:side//2,side//3:side//2] = torch.rand(n, 3, 1, 1, generator=g)
    return x.permute(0,2,3,1).numpy()

def processor():
    "What /proc says of it, where there is one, and the vector units that count"
    try: info = Path('/proc/cpuinfo').read_text()
    except OSError: return platform.processor()
    name = re.search(r'model name\s*: (.*)', info)
    return f"{name[1] if name else ''}: {' '.join(o for o in ('avx2','avx512f','avx512_bf16') if f' {o} ' in info)}"

@call_parse
def main(
    threads:int=2, # torch's threads
    bs:int=64, # Images a batch
    repeats:int=7, # Rounds
    least:float=.25, # Seconds of each library in a round
    only:str='', # One case
    out:str='nbs/results/views.json', # Where the rows go
):
    "Time the views of each library, in turns; rows of other cases and numbers of threads stay."
    check_writable(out)
    set_seed(0)
    torch.set_num_threads(threads)
    rows = {(o['case'],o['threads']):o for o in (json.loads(Path(out).read_text()) if Path(out).exists() else [])}
    for case in [only] if only else cases:
        row = {**measured(case, bs, repeats, least), 'threads':threads, **versions(), **provenance(),
            'processor':processor(), 'load':[round(o, 1) for o in os.getloadavg()], 'command':command()}
        rows[case,threads] = row
        print(case, row['views_per_second'], row['times'], flush=True)
        write_row([*rows.values()], out)
