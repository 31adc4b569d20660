r"""Does the automatic weight do as well as the best of three fixed ones? The demo's images, encoder and steps; a term
of SimCLR beside each pretext task, weighed .1, .4 and 1.6, or `'balanced'`; judged by `probe_factors`. A row is one
(task, weight, seed), written to `--out` when it is done; what is there is not run again.

    python nbs/results/balance.py            # two seeds: about 40 minutes of one CPU core
    python nbs/results/balance.py --table    # the table of what is there
"""
from fastcore.script import *
from fastai.vision.all import *
from fastai_contrastive.all import *
from fastai_contrastive import demo
from fastai_contrastive.recipes import provenance
from shared import command, read_rows, run_missing

tasks,weights = ['inpainting','rotation'],[.1,.4,1.6,'balanced']
names = {f'{t}+{w}':(t,w) for t in tasks for w in weights}

def job(name, seed, a):
    "Train one encoder, and look at what it has kept"
    task,w = names[name]
    with tempfile.TemporaryDirectory() as d:
        path = synth_images(Path(d)/'images', 10, 20, 1800, 30, 32, seed)
        dls = demo._demo_dls(demo._demo_images(path), path, 64, seed)
    enc = demo._demo_encoder(seed)
    set_seed(seed)
    views = SimCLR().views().but(**drawn_views)
    term = ContrastiveCallback(SimCLR(), views, w)
    learn = pretext_learner(dls, enc, task, cbs=[term, TermGradients(every=20)], wd=1e-2)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(a.epochs, demo._demo_lr)
    last = dict(zip(learn.recorder.metric_names[1:], learn.recorder.values[-1]))
    g,c = learn.term_gradients.frame,learn.term_gradients.cosines
    norm = g.groupby('loss').norm.median()
    return dict(row=name, seed=seed, task=task, weight=w, epochs=a.epochs, images=len(dls.train_ds),
        factors={k:round(v,2) for k,v in probe_factors(enc, pbar=False).items()},
        valid_loss=round(float(last['valid_loss']), 5), simclr_loss=round(float(last['simclr_loss']), 5),
        mean_weight=round(float(term.history.weight.mean()), 4),
        norm_ratio=round(float(norm['simclr']/norm['task']), 3), cosine=round(float(c.cosine.mean()), 3),
        command=command(), **provenance())

def table(out):
    "Means over the seeds"
    rows,keys = read_rows(out),['shape',"ground's colour",'size','turn','place']
    head = ['task', 'weight of SimCLR', 'seeds', *keys, "the term's gradient over the task's", 'cosine']
    lines = ['| '+' | '.join(head)+' |', '| --- '*len(head)+'|']
    for name,(t,w) in names.items():
        rs = rows.filter(lambda o: o['row']==name)
        if not rs: continue
        mean = lambda f: np.mean([f(o) for o in rs])
        said = f"{w} (mean {mean(lambda o: o['mean_weight']):.2f})" if w=='balanced' else w
        cells = [f"{mean(lambda o: o['factors'][k]):.1f}" for k in keys]
        cells += [f"{mean(lambda o: o['norm_ratio']):.1f}", f"{mean(lambda o: o['cosine']):.2f}"]
        lines.append(f'| {t} | {said} | {len(rs)} | '+' | '.join(cells)+' |')
    return '\n'.join(lines)

@call_parse
def main(
    seeds:int=2, # 200, 201, ...: not those of the demo's table
    epochs:int=20, # Of 1,900 images
    out:str='nbs/results/balance-32px', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing, and print the table."
    a,fs = SimpleNamespace(epochs=epochs),globals()
    if not table: run_missing([(n,200+s) for s in range(seeds) for n in names], out, lambda n,s: job(n, s, a))
    print(fs['table'](out))
