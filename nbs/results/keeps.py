r"""What does each loss keep of an image, and what does a classifier on it go by where two cues disagree?

The demo's question to tasks, to an objective of each family and to their sums, on 1,800 drawn images of 32 pixels:
how well linear models read every factor (`probe_factors`), and whether a classifier follows the shape, or the texture
of the object, or the colour of the ground (`probe_conflict`). Each encoder is trained for `--epochs` epochs at one
learning rate; the rows of 20 epochs in `tasks-drawn-32px/` show what still rises. In a sum, weights are 1. Settings of
objectives are those of `objectives.py`.

    python nbs/results/keeps.py             # what is missing, one JSON file a row; two copies share the work
    python nbs/results/keeps.py --table
    python nbs/results/keeps.py --photographs REPORT   # the encoders of a report on Imagenette, at its size
"""
import sys, tempfile
from fastcore.script import *
from shared import *
from objectives import settings, drawn
from fastai_contrastive import demo
from fastai_contrastive.evaluation.factors import drawn_factors
from fastai_contrastive.recipes import provenance

losses = ['simclr','byol','vicreg','swav','rotation','inpainting','colorization','denoising','jigsaw','sim_mim']
sums = ['inpainting+simclr','denoising+simclr','rotation+simclr','inpainting+vicreg','rotation+inpainting+simclr']
names = ['untrained',*losses,*sums]
objectives = set(Objective.registry)

def terms(parts):
    "Callbacks of the parts of a sum"
    for o in parts:
        if o not in objectives: yield PretextTerm(o)
        else:
            obj = Objective.registry[o](**settings.get(o, {}))
            yield ContrastiveCallback(obj, obj.views().but(**drawn_views, **drawn.get(o, {})))

def learner(name, enc, dls):
    "What trains the row: the first task is the Learner's own, the rest are terms; an objective alone is all there is"
    first,*rest = name.split('+')
    if first not in objectives: return pretext_learner(dls, enc, first, cbs=[ChannelsLast(), *terms(rest)], wd=1e-2)
    term = next(terms([first]))
    return contrastive_learner(dls, enc, term.objective, term.views, cbs=[ChannelsLast(), *terms(rest)], wd=1e-2)

def job(name, seed, a):
    "A row"
    with tempfile.TemporaryDirectory() as d:
        path = synth_images(Path(d)/'images', 10, 20, 1800, 30, 32, seed)
        dls = demo._demo_dls(demo._demo_images(path), path, 64, seed)
    set_seed(seed)
    enc,curve = create_encoder('xresnet_narrow', blocks=1),None
    if name!='untrained':
        learn = learner(name, enc, dls)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(a.epochs, a.lr)
        curve = [round(float(o[0]), 4) for o in learn.recorder.values]
    kept = probe_factors(enc, factors=list(drawn_factors), pbar=False)
    asked = {k:probe_conflict(enc, k) for k in conflict_cues}
    cut = lambda o: {k:round(v,2) for k,v in o.items()}
    return dict(row=name, seed=seed, arch=enc.arch, arch_args=enc.kwargs, epochs=a.epochs, lr=a.lr, losses=curve,
        factors=cut(kept), conflict={k:cut(v) for k,v in asked.items()}, **provenance(), command=command())

def photographs(report):
    "A row for each encoder that a report has left: what it has kept of Imagenette"
    size = json.loads((Path(report)/'plan.json').read_text())['size']
    out = Path(__file__).parent/f'keeps-{size}px-photographs'
    dls = labelled_dls(small('imagenette', size*5//4), size=size, bs=128, augment=False, cache=True, num_workers=0)
    done = lambda f: encoder_info(f)['recipe'].get('finished', True) # `labels` rows save no other
    files = [f for f in sorted((Path(report)/'weights').glob('*.safetensors')) if done(f)]
    check_writable(out/'x')
    if not files: raise FileNotFoundError(f'no encoder in {report}/weights: nothing was pretrained there')
    encs = {f.stem:load_encoder(f) for f in files}
    one,seeds = first(encs.values()),sorted({int(k.rpartition('-')[2]) for k in encs})
    for s in seeds: # As each seed's began
        set_seed(s)
        encs[f'scratch-{s}'] = create_encoder(one.arch, **one.kwargs)
    for k,enc in encs.items():
        kept = {f:round(v,2) for f,v in probe_photographs(enc, dls, pbar=False).items()}
        row,_,seed = k.rpartition('-')
        row = dict(row=row, seed=int(seed), arch=enc.arch, arch_args=enc.kwargs, size=size, kept=kept)
        write_row({**row, **provenance(), 'command':command().replace(str(report), 'REPORT')}, out/f'{k}.json')
        print(k, kept, flush=True)

def said(row):
    "What a classifier goes by, a number a column: right where cues agree, then the shape's and the other's share"
    return {f'{k} or shape: {c}':row['conflict'][k][c] for k in conflict_cues for c in ('agree','shape',k)}

def means(rows):
    "Name of a row → column → mean over seeds: the factors, then what a classifier goes by"
    res = {}
    for name in names:
        if not (rs := rows.filter(lambda o: o['row']==name)): continue
        cols = [{**o['factors'], **said(o)} for o in rs]
        res[name] = {k:float(np.mean([o[k] for o in cols])) for k in cols[0]}
    return res

def table(out):
    "A line a row, mean over seeds"
    m = means(read_rows(out))
    cols = list(next(iter(m.values())))
    lines = ['| trained on | '+' | '.join(cols)+' |', '| --- '*(len(cols)+1)+'|']
    return '\n'.join(lines+[f'| {k} | '+' | '.join(f'{v[c]:.0f}' for c in cols)+' |' for k,v in m.items()])

@call_parse
def main(
    epochs:int=30, # Times that every image is seen
    lr:float=4e-3, # Highest learning rate
    seeds:int=1, # 0, 1, ...
    only:str='', # Names of rows to run, separated by commas; all if empty
    out:str='nbs/results/keeps-32px', # Where the rows go
    photographs:str='', # Folder of a report: ask its encoders what they have kept of photographs, and nothing else
    table:store_true=False, # Only print the table
):
    "Run what is missing, and print the table."
    fs,a = globals(),SimpleNamespace(**locals())
    if photographs: return fs['photographs'](photographs)
    todo = only.split(',') if only else names
    if not table: run_missing([(o,s) for s in range(seeds) for o in todo], out, lambda n,s: job(n, s, a))
    print(fs['table'](out))
