r"""What a term is for: few labels, many images. The rows behind the tutorial "Your first term", on drawn images.

Everything differs from seed to seed: the images, which of them have labels, the first weights, the order. Each (arm,
seed) writes one JSON file into `--out`, and one that is there is left alone, so the script can be stopped and started
again:

    OMP_NUM_THREADS=1 python nbs/results/first_term.py                        # with and without the term, ten seeds
    OMP_NUM_THREADS=1 python nbs/results/first_term.py --seeds 3 --only own,heavy,many,many+term
    python nbs/results/first_term.py --table                                  # the table of what is there

The settings were chosen on seeds from 100 on. All arms of a seed have the same number of steps, and begin with the same
encoder and classifier; accuracy is that on 200 validation images after the last step.
"""
import json
from fastcore.script import *
from fastai.vision.all import *
from fastai_contrastive.all import *
from fastai_contrastive.recipes import provenance, write_row

few,many = dict(n_per_class=10, bs=20, epochs=48),dict(n_per_class=60, bs=20, epochs=8)
arms = {'alone':few, 'term':dict(few, weight=1.),                     # 100 labels; the term sees all 2,100 images
    'own':dict(few, weight=1., dl=False), 'heavy':dict(few, weight=30.), # fed by those 100 images only; a large weight
    'many':many, 'many+term':dict(many, weight=1.)}                   # 600 labels
what = dict(alone='100 labels alone', term='and SimCLR on all images, weight 1', own='SimCLR on the 100 only',
    heavy='SimCLR on all, weight 30', many='600 labels alone', **{'many+term':'and SimCLR on all images, weight 1'})

class LastEpochOnly(Callback):
    "Validate after the last epoch only"
    def before_validate(self):
        if self.epoch<self.n_epoch-1: raise CancelValidException()

def images(seed): return synth_images(fastai_path('data')/f'synth-first-term-{seed}', n_train=60, n_unsup=1500, n_valid=20,
    size=24, seed=seed)

def job(arm, seed, n_per_class, bs, epochs, weight=0., dl=True):
    "Train one arm with one seed, and give its row"
    path = images(seed)
    set_seed(seed)
    dls = labelled_dls(path, size=24, bs=bs, n_per_class=n_per_class, seed=seed, min_scale=.6, num_workers=0)
    every = unlabeled_dls(path, size=24, bs=64, folders=['train','unsup'], valid_pct=0, num_workers=0).train
    set_seed(seed)
    model = nn.Sequential(create_encoder('xresnet18', widen=.25, stem_szs=(8,8,64)), nn.Linear(128, dls.c))
    term = [ContrastiveCallback(SimCLR(), weight=weight, dl=every if dl else None)] if weight else []
    learn,start = Learner(dls, model, metrics=accuracy, cbs=[LastEpochOnly(), *term]),time.process_time()
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 4e-3)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    return dict(arm=arm, seed=seed, labels=len(dls.train_ds), images=len(every.dataset), weight=weight, dl=bool(term) and dl,
        steps=learn.train_iter, **{k:round(float(v), 4) for k,v in row.items()},
        cpu_seconds=round(time.process_time()-start, 1), **provenance())

def table(out):
    "A row an arm: mean ± standard deviation of the accuracy over the seeds, and each seed's"
    got = L(json.loads(o.read_text()) for o in sorted(Path(out).glob('*.json')))
    lines = ['| arm | seeds | accuracy | each seed |', '| --- | --- | --- | --- |']
    for arm,s in what.items():
        v = 100*np.array(got.filter(lambda o: o['arm']==arm).sorted('seed').attrgot('accuracy'))
        if len(v)>1: lines.append(f'| {s} | {len(v)} | {v.mean():.1f} ± {v.std(ddof=1):.1f} | {", ".join(f"{o:.1f}" for o in v)} |')
    return '\n'.join(lines)

@call_parse
def main(
    seeds:int=10, # 0 up to this
    only:str='alone,term', # Arms, separated by commas
    out:str='nbs/results/first-term', # A JSON file for each arm and seed
    table:store_true=False, # Print the table of what is there, and stop
):
    "Train what is not there yet"
    if table: return print(globals()['table'](out))
    Path(out).mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for arm in only.split(','):
            f = Path(out)/f'{arm}-{seed}.json'
            if f.exists(): continue
            row = job(arm, seed, **arms[arm])
            write_row(row, f)
            print(arm, seed, row['accuracy'], row['cpu_seconds'], flush=True)
