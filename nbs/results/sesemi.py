r"""SESEMI's form on Image网, with the rotation term and without: the rows behind the tutorial.

A part of the labels of `train/`, the same steps, and beside them rotation on all images of `train/` and `unsup/`, or
nothing. Each (arm, seed) writes one JSON file into `--out`, and one that is there is left alone:

    OMP_NUM_THREADS=1 python nbs/results/sesemi.py
    python nbs/results/sesemi.py --table

On a GPU, at a size that can decide something (all labels, as on the board):

    python nbs/results/sesemi.py --size 128 --bs 128 --arch xresnet34 --arch-args '{}' --pct 1 --epochs 80 --seeds 5 \
        --num-workers 12 --out nbs/results/sesemi-128px

`board` is the accuracy over all twenty classes, as the leaderboard counts it; `dogs` is that among the ten which are
scored. Both are of the last epoch, on all of `val/`.
"""
from fastcore.script import *
from shared import *
from fastai_contrastive.recipes import provenance

arms = 'labels','labels+rotation'

class NoValidation(Callback):
    "The validation images are looked at once, at the end"
    def before_validate(self): raise CancelValidException()

def job(arm, seed, a):
    "One arm with one seed: train, then answer all of `val/`"
    path,kw = untar_data(URLs.IMAGEWANG_160),dict(size=a.size, num_workers=a.num_workers)
    set_seed(seed)
    dls = imagewang_dls(path, bs=a.bs, pct=a.pct, seed=seed, **kw)
    every = imagewang_pretrain_dls(path, bs=a.bs, valid_pct=0, **kw).train
    set_seed(seed)
    enc,start = create_encoder(a.arch, **json.loads(a.arch_args)),time.process_time()
    term = [PretextTerm(Rotation(), dl=every)] if arm=='labels+rotation' else []
    learn = finetune_learner(dls, enc, cbs=[NoValidation(), *term])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(a.epochs, 4e-3)
    logged = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    learn.remove_cb(NoValidation)
    with learn.no_bar(): p,y = learn.get_preds()
    scored = y.unique()
    dogs = scored[p[:,scored].argmax(1)]==y
    return dict(arm=arm, seed=seed, size=a.size, bs=a.bs, arch=a.arch, arch_args=a.arch_args, pct=a.pct,
        epochs=a.epochs, labels=len(dls.train_ds), images=len(every.dataset), steps=learn.train_iter,
        train_loss=round(logged['train_loss'], 4),
        **{k:round(float(logged[k]), 4) for k in ('rotation_loss','rotation_accuracy') if k in logged},
        board=round(accuracy(p, y).item(), 5), dogs=round(dogs.float().mean().item(), 5),
        cpu_seconds=round(time.process_time()-start, 1), **provenance())

def table(out):
    "A row an arm: mean ± standard deviation over the seeds, in %, and each seed's"
    got = read_rows(out)
    lines = ['| | seeds | board | dogs |', '| --- | --- | --- | --- |']
    for arm in arms:
        rs = got.filter(lambda o: o['arm']==arm)
        def cell(k):
            v = 100*np.array(rs.attrgot(k))
            return f'{v.mean():.1f} ± {v.std(ddof=1):.1f} ({", ".join(f"{o:.1f}" for o in v)})'
        if len(rs)>1: lines.append(f'| {arm} | {len(rs)} | {cell("board")} | {cell("dogs")} |')
    return '\n'.join(lines)

@call_parse
def main(
    size:int=64, # Pixels
    bs:int=32, # Images a batch, labelled and of the term
    arch:str='xresnet18', # Encoder
    arch_args:str='{"widen": 0.25, "stem_szs": [16, 16, 64]}', # JSON, passed to the arch
    pct:float=.25, # Share of the labels
    epochs:int=1, # Times through the labels
    seeds:int=2, # 0 up to this
    num_workers:int=0, # Loading processes
    out:str='nbs/results/sesemi-64px', # A JSON file for each arm and seed
    table:store_true=False, # Print the table of what is there, and stop
):
    "Train what is not there yet"
    if table: return print(globals()['table'](out))
    a = AttrDict(locals())
    run_missing([(arm,seed) for seed in range(seeds) for arm in arms], out, lambda arm,seed: job(arm, seed, a))
