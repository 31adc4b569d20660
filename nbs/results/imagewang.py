r"""The main experiment: what a contrastive term adds to a pretext task on Image网.

Every row has the same pretraining images, steps and fine-tuning; only the loss differs. Each (row, seed) is a job that
writes one JSON file into `--out`, so the script can be stopped and started again, and several copies can share the
work:

    python nbs/results/imagewang.py                       # the size that two CPU cores can do
    python nbs/results/imagewang.py --table               # the table of what is there

On a GPU:

    python nbs/results/imagewang.py --size 128 --bs 256 --arch xresnet34 --arch-args '{}' --n-images 0 --epochs 100 \
        --ft-epochs 5 --ft10-epochs 40 --short-side 0 --seeds 5 --out nbs/results/imagewang-128px
"""
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).parent))
from fastcore.script import *
from shared import *
from fastai_contrastive.recipes import provenance

rows = dict(scratch={}, rotation=dict(task='rotation'), inpainting=dict(task='inpainting'),
    simclr=dict(objective='simclr'), **{'rotation+simclr':dict(task='rotation', objective='simclr'),
    'inpainting+simclr':dict(task='inpainting', objective='simclr')})

def some_files(path, n):
    "All files of `train/` and `unsup/`, or `n` of them drawn once for all rows and seeds"
    files = image_files(path, ['train','unsup'])
    return files if not n else files[sorted(np.random.default_rng(0).permutation(len(files))[:n].tolist())]

def classes_of_val(dls): return sorted({int(o) for o in dls.valid_ds.tls[-1]})

def job(name, seed, a):
    "One row with one seed: pretrain, then the four measurements"
    set_seed(seed) # The order of the images is drawn from when their loader is made
    out = Path(a.out)/'weights'/f'{name}-{seed}'
    wang,nette = small('imagewang', a.short_side),small('imagenette', a.short_side)
    common = dict(size=a.size, bs=a.bs, num_workers=a.num_workers)
    apart = 'out','table','seeds','num_workers'
    row = dict(row=name, seed=seed, **{k:v for k,v in vars(a).items() if k not in apart})
    if rows[name]:
        r = Recipe(data='imagewang', size=a.size, bs=a.bs, arch=a.arch, arch_args=a.arch_args, weight=a.weight,
                   epochs=a.epochs, lr=a.lr, seed=seed, **rows[name])
        dls = unlabeled_dls(some_files(wang, a.n_images), valid_pct=0, path=wang, **common)
        learn,pre = pretrain(r, out, dls, ChannelsLast())
        enc = learn.model[0]
        row['pretrain'] = {k:pre[k] for k in ('images','steps','seconds','columns','values')}
    else:
        set_seed(seed)
        enc = create_encoder(a.arch, **a.arch_args)
    fresh = lambda: deepcopy(enc)
    board,few = labelled_dls(wang, **common),labelled_dls(nette, pct=.1, seed=seed, **common)
    ev = evaluate(fresh(), dls=board, classes=classes_of_val(board))
    row.update(knn_dogs=ev['knn'], linear_dogs=ev['linear'])
    for k,dls,n in (('imagenette10',few,a.ft10_epochs),('board',board,a.ft_epochs)):
        # The validation images are looked at once, after the last epoch
        _,ft = finetune(fresh(), dls=dls, epochs=n, lr=a.ft_lr, seed=seed, size=a.size, bs=a.bs,
                        cbs=[LastEpochOnly(), ChannelsLast()])
        row[k],row[f'{k}_labels'],row[f'{k}_seconds'] = ft['accuracy'],ft['n_labels'],ft['seconds']
    return {**row, **provenance()}

def table(out):
    "A row a method: mean ± standard deviation over the seeds (and each seed's value in the files)"
    cols = dict(board='board: all of `train/`, accuracy on `val/`', knn_dogs='kNN, dogs', linear_dogs='linear, dogs',
                imagenette10='10% of Imagenette\'s labels')
    return mean_table(read_rows(out), rows, cols)

@call_parse
def main(
    size:int=64, # Pixels
    bs:int=64, # Images a batch
    arch:str='xresnet18', # Encoder
    arch_args:str='{"widen": 0.25, "stem_szs": [16, 16, 64]}', # JSON, passed to the arch
    epochs:int=2, # Of pretraining
    n_images:int=15000, # Images of train/ and unsup/ that pretraining sees; 0 for all 22,419
    lr:float=4e-3, # Of pretraining
    weight:float=1., # Of the contrastive term beside a task
    ft_epochs:int=5, # Of the board's fine-tuning
    ft10_epochs:int=8, # Of fine-tuning on 10% of Imagenette's labels
    ft_lr:float=4e-3, # Of both
    short_side:int=80, # Resize the files once to this shorter side; 0 for not
    seeds:int=2, # 0, 1, ...
    only:str='', # Names of rows to run, separated by commas; all if empty
    num_workers:int=0, # Loading processes
    out:str='nbs/results/imagewang-64px', # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing of the experiment, and print its table."
    a = SimpleNamespace(**{k:v for k,v in locals().items() if k!='only'})
    a.arch_args = json.loads(arch_args)
    make_table = globals()['table']
    if table: return print(make_table(out))
    names = only.split(',') if only else rows
    run_missing([(o,s) for s in range(seeds) for o in names], out, lambda name,seed: job(name, seed, a))
    print(make_table(out))
