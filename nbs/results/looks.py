"""Would other settings help the objectives that are low in `objectives-64px`? Each look is judged on a tenth of
Imagenette's training images, held out from the neighbours and the probe, so that the validation images stay untouched:

    python nbs/results/looks.py     # runs what is missing in looks-64px.json (about four minutes each), and prints all

The rows kept were made when the seed did not fix the order of the images yet: the same setting twice is there as a
measure of what that makes.
"""
from objectives import *
from fastai_contrastive.data import class_name, _mk_dls

blurred = dict(p_blur=(1.,.1), p_solarize=(0.,.2), saturation=.2)
looks = [dict(objective=o, settings=s, views=v, lr=lr) for o,s,v,lr in (
    ('simclr', {}, {}, 4e-3),
    ('simclr', {}, blurred, 4e-3),
    ('barlowtwins', {}, {}, 4e-3),
    ('barlowtwins', {}, {}, 1e-3),
    ('barlowtwins', dict(dim=1024), {}, 4e-3),
    ('barlowtwins', dict(lambd=.05), {}, 4e-3),
    ('byol', {}, {}, 4e-3),
    ('byol', {}, {}, 1e-3),
    ('byol', dict(momentum=.9), {}, 4e-3),
    ('byol', dict(momentum=.9, momentum_end=1., dim=256, hidden=1024, pred_hidden=1024), {}, 4e-3),
    ('simsiam', {}, {}, 4e-3),
    ('simsiam', {}, {}, 1e-3))]
a = SimpleNamespace(data='imagenette', size=64, bs=64, arch='xresnet18', arch_args=dict(widen=.25, stem_szs=(16,16,64)),
                    short_side=80, num_workers=0, wd=1e-2, epochs=2, seed=0, C=1.)

def held_out(labelled):
    "Labelled training images: nine tenths to look up, a tenth to judge by"
    files = labelled.train_ds.items
    idxs = np.random.default_rng(0).permutation(len(files)).tolist()
    k = len(files)//10
    return _mk_dls(L(files), (idxs[k:],idxs[:k]), a.size, a.bs, '.', [[class_name, Categorize()]], num_workers=0)

def look(o):
    "What came of one"
    set_seed(a.seed)
    dls,labelled = data(a)
    judge = held_out(labelled)
    set_seed(a.seed)
    enc = create_encoder(a.arch, **a.arch_args)
    obj = Objective.registry[o['objective']](**{**settings.get(o['objective'], {}), **o['settings']})
    learn = contrastive_learner(dls, enc, obj, obj.views().but(**o['views']) if o['views'] else None, wd=a.wd)
    with learn.no_bar(): learn.fit_one_cycle(a.epochs, o['lr'], cbs=ChannelsLast())
    fs = split_features(learn.model[0], judge, pbar=False)
    return dict(**o, seed=a.seed, epochs=a.epochs, knn=round(knn_accuracy(fs),4),
                linear=round(linear_probe(fs, C=a.C).acc,4), **provenance())

if __name__=='__main__':
    out = Path(__file__).parent/'looks-64px.json'
    for o in json.loads(json.dumps(looks)):
        rows = json.loads(out.read_text()) if out.exists() else []
        if not any(all(r[k]==v for k,v in o.items()) for r in rows): write_row([*rows, look(o)], out)
    for r in json.loads(out.read_text()):
        print(r['objective'], {**r['settings'], **r['views']}, r['lr'], r['knn'], r['linear'])
