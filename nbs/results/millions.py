"""What ten million images cost before the first is opened: `python nbs/results/millions.py [n]` → millions.json

Names are simulated, in the way of ImageNet's, and files are empty where a folder is listed (a tenth as many)."""
import json, multiprocessing, random, resource, shutil, sys, tempfile, time
from fastai.vision.all import *
from fastai_contrastive.image_dl import *
from fastai_contrastive.paths import *
from fastai_contrastive.images import *
from fastai_contrastive.rows import provenance, write_row

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1e3 # MB
def own(): return int(re.search(r'Private_Dirty: +(\d+)', Path('/proc/self/smaps_rollup').read_text())[1])/1e3 # MB

class Read(Transform):
    def encodes(self, o:Path): return TensorImage(torch.zeros(1)+len(o.name))

def clocked(f, *args):
    t = time.perf_counter()
    return f(*args),time.perf_counter()-t

def in_worker(ps, q):
    "Memory that a forked process makes its own by reading every hundredth path"
    was = own()
    for i in range(0, len(ps), 100): ps[i]
    q.put(own()-was)

def names(n): return (f'images/train/n{i%1000:08}/n{i%1000:08}_{i:08}.JPEG' for i in range(n))

def listed(n):
    "Seconds a file for listing folders with `n` empty files"
    d = Path(tempfile.mkdtemp())
    for c in range(100): (d/f'n{c:08}').mkdir()
    for i in range(n): os.close(os.open(d/f'n{i%100:08}'/f'n{i%100:08}_{i:08}.JPEG', os.O_CREAT))
    fs,t = clocked(image_files, d)
    assert len(fs)==n
    shutil.rmtree(d)
    return t/n

def main(n):
    base = peak()
    ps,t_made = clocked(compact_paths, names(n))
    mixed,t_mixed = clocked(lambda: ps[np.random.default_rng(0).permutation(n)])
    ds = Datasets(mixed, [[Read()]], splits=(slice(0,n-n//20),slice(n-n//20,n)), n_inp=1)
    dl = ds.dataloaders(bs=256, num_workers=0, device='cpu', dl_type=ImageDL).train
    idxs,t_order = clocked(dl.get_idxs)
    (_,ids),t_folders = clocked(folders_of, mixed)
    q = multiprocessing.get_context('fork').Queue()
    p = multiprocessing.get_context('fork').Process(target=in_worker, args=(mixed, q))
    p.start()
    forked = q.get()
    p.join()
    return dict(kind='millions', n=n, bytes_a_file=round(ps.nbytes/n, 1), peak_mb=round(peak()), before_mb=round(base),
        made_s=round(t_made, 1), reordered_s=round(t_mixed, 1), shuffled_s=round(t_order, 1),
        folders_s=round(t_folders, 2), forked_mb=round(forked, 1))

if __name__=='__main__':
    n = int(sys.argv[1]) if len(sys.argv)>1 else 10_000_000
    row = main(n)
    row['listed_us_a_file'] = {k:round(1e6*listed(k), 2) for k in (n//160,n//40,n//10)}
    row.update(provenance())
    write_row(row, Path(__file__).with_suffix('.json'))
    print(json.dumps(row, indent=1))
