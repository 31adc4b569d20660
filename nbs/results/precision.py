r"""Does bfloat16 cost accuracy? The same SimCLR runs with the encoder's passes in float32 and in bfloat16, by seeds.

Drawn images at 32 px, five seeds; Imagenette at 64 px, two seeds (where the hardware has no bfloat16 it is imitated,
and slow: a graphics card is the place for these). kNN and linear accuracy of the frozen encoder.

    OMP_NUM_THREADS=1 python nbs/results/precision.py
    python nbs/results/precision.py --data imagenette --size 64 --epochs 10 --seeds 2 --arch xresnet18 --widen .5
    python nbs/results/precision.py --table
"""
from fastcore.script import *
from shared import *
from fastai_contrastive import recipes
from fastai_contrastive.lessons import drawn_views

kinds = 'fp32','bf16'

def table(out):
    "Means over the seeds, and the difference by pairs of runs with one seed"
    rows = read_rows(out)
    lines = [mean_table(rows, kinds, dict(knn='kNN', linear='linear'), 'passes in')]
    for k in ('knn','linear'):
        of = {(r['row'],r['seed']):r[k] for r in rows}
        d = [of['bf16',s]-of['fp32',s] for kind,s in of if kind=='bf16' and ('fp32',s) in of]
        if d: lines.append(f'{k}, bf16 less fp32, {len(d)} pairs: {cell(d)} points')
    return '\n\n'.join(lines)

@call_parse
def main(
    data:str='synth', # As for `data_path`
    size:int=32, # Pixels
    epochs:int=8, # Of pretraining
    seeds:int=5, # Runs of each kind
    bs:int=64, # Images a batch
    arch:str='xresnet_narrow', # As for `create_encoder`
    widen:float=None, # Of an xresnet18
    out:str=None, # Where the rows go
    table:store_true=False, # Only print the table
):
    "Run what is missing, and print the table."
    out,show = out or f'nbs/results/precision-{data}-{size}px',globals()['table']
    if table: return print(show(out))
    kw = dict(nf=32, blocks=1) if arch=='xresnet_narrow' else dict(widen=widen) if widen else {}
    views = {k:v for k,v in drawn_views.items()} if data=='synth' else {}
    path = small(data, 80) if data!='synth' else data
    def run(kind, seed):
        fn = Path(out)/'weights'/f'{kind}-{seed}'
        r = recipes.Recipe(data=str(path), size=size, bs=bs, arch=arch, arch_args=kw, objective='simclr',
            views_args=views, epochs=epochs, seed=seed, precision=kind)
        learn,row = recipes.pretrain(r, fn, num_workers=0)
        got = recipes.evaluate(learn.model[0], path, size=size, pbar=False, num_workers=0)
        return dict(row=kind, seed=seed, data=data, knn=got['knn'], linear=got['linear'],
            pretraining={**row, 'data':data}, **recipes.provenance(), command=command())
    run_missing([(k,s) for s in range(seeds) for k in kinds], out, run)
    print(show(out))
