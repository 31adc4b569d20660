r"""What a term is for: few labels, many images. The rows behind the tutorial "Your first term", on drawn images.

Everything differs from seed to seed: the images, which of them have labels, the first weights, the order. Each (arm,
seed) writes one JSON file into `--out`, and one that is there is left alone, so the script can be stopped and started
again:

    OMP_NUM_THREADS=1 python nbs/results/first_term.py                        # with and without the term, ten seeds
    OMP_NUM_THREADS=1 python nbs/results/first_term.py --seeds 3 --only own,heavy,many,many+term
    python nbs/results/first_term.py --table                                  # the table of what is there

The settings were chosen on seeds from 100 on. All arms of a seed have the same number of steps, and begin with the same
encoder and classifier; accuracy is that on 500 validation images after the last step.
"""
from fastcore.script import *
from shared import *
from fastai_contrastive.lessons import drawn_views
from fastai_contrastive.recipes import provenance

few,many = dict(n_per_class=10, epochs=60),dict(n_per_class=60, epochs=10)
arms = {'alone':few, 'term':dict(few, weight=1.),                         # 100 labels; the term sees all 2,100 images
    'own':dict(few, weight=1., dl=False), 'heavy':dict(few, weight=100.), # fed by those 100 only; a large weight
    'many':many, 'many+term':dict(many, weight=1.)}                       # 600 labels
what = dict(alone='100 labels alone', term='100 labels, SimCLR on all images', own='100 labels, SimCLR on those only',
    heavy='100 labels, SimCLR on all images with weight 100', many='600 labels alone',
    **{'many+term':'600 labels, SimCLR on all images'})

def in_memory(dl, *tfms, **kwargs):
    "A loader over the same images, read once"
    items = [tuple(o) for b in dl.new(shuffle=False, drop_last=False) for o in zip(*b)]
    return TfmdDL(items, after_batch=[*tfms, Normalize.from_stats(*imagenet_stats)], num_workers=0, **kwargs)

def loaders(seed, n_per_class):
    "Labelled `DataLoaders`, and a loader over all images"
    path = synth_images(fastai_path('data')/f'synth-first-term-{seed}', n_train=60, n_unsup=1500, n_valid=50,
        size=32, seed=seed)
    kw = dict(size=32, bs=100, norm=None, num_workers=0)
    lab = labelled_dls(path, n_per_class=n_per_class, seed=seed, augment=False, **kw)
    every = unlabeled_dls(path, folders=['train','unsup'], valid_pct=0, **kw).train
    set_seed(seed)
    zoom = aug_transforms(max_rotate=0, max_lighting=0, max_warp=0, max_zoom=1.3)
    tr = in_memory(lab.train, *zoom, bs=20, shuffle=True, drop_last=True)
    return DataLoaders(tr, in_memory(lab.valid, bs=100)),in_memory(every, bs=64, shuffle=True, drop_last=True)

def model():
    ws = 3,16,32,64,128
    body = nn.Sequential(*[ConvLayer(a, b, stride=2) for a,b in zip(ws, ws[1:])])
    return nn.Sequential(body, nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(128, 10)))

def job(arm, seed, n_per_class, epochs, weight=0., dl=True):
    "Train one arm with one seed, and give its row"
    dls,every = loaders(seed, n_per_class)
    set_seed(seed)
    net,start = model(),time.process_time()
    views = SimCLR().views().but(**drawn_views)
    term = [ContrastiveCallback(SimCLR(), views, weight, dl=every if dl else None)] if weight else []
    learn = Learner(dls, net, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[LastEpochOnly(), *term])
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, 1e-2)
    row = dict(zip(learn.recorder.metric_names[1:-1], learn.recorder.values[-1]))
    return dict(arm=arm, seed=seed, labels=len(dls.train.dataset), images=len(every.dataset), weight=weight,
        dl=bool(term) and dl, steps=learn.train_iter, **{k:round(float(v), 4) for k,v in row.items()},
        cpu_seconds=round(time.process_time()-start, 1), **provenance())

def table(out):
    "A row an arm: mean ± standard deviation of the accuracy over the seeds, and each seed's"
    got = read_rows(out)
    lines = ['| arm | seeds | accuracy | each seed |', '| --- | --- | --- | --- |']
    for arm,s in what.items():
        v = 100*np.array(got.filter(lambda o: o['arm']==arm).sorted('seed').attrgot('accuracy'))
        each = ', '.join(f'{o:.1f}' for o in v)
        if len(v)>1: lines.append(f'| {s} | {len(v)} | {v.mean():.1f} ± {v.std(ddof=1):.1f} | {each} |')
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
    todo = [(arm,seed) for seed in range(seeds) for arm in only.split(',')]
    run_missing(todo, out, lambda arm,seed: job(arm, seed, **arms[arm]))
