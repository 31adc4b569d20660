"""Bad input, tried and counted: each case is used, and the value asserted, or refused by name before work is lost.

A case that returns says which of the two it was. None may take longer than `limit` seconds; what could fill the memory
runs in a process of its own (`alone`), where it may take 1 GB beyond what was loaded before.
"""
import atexit, io, json, math, os, pickle, runpy, shutil, signal, struct, sys, tempfile, traceback, warnings, zlib
from contextlib import contextmanager
import pytest
from PIL import Image
from safetensors.torch import load_file, save
from fastai.vision.all import *
from fastai_contrastive import cli, recipes
from fastai_contrastive.checkpoints import *
from fastai_contrastive.core import *
from fastai_contrastive.data import *
from fastai_contrastive.encoder import *
from fastai_contrastive.images import CropResize
from fastai_contrastive.recipes import Recipe
from fastai_contrastive.objectives import *

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

limit = 20 # Seconds
cases = {}

def case(kind, *params):
    "Register a function as one case, or as one for each of `params`"
    def _f(f):
        for p in params or [None]:
            name = f'{kind}-{f.__name__}'+('' if p is None else f'-{p if isinstance(p, (str,int,float)) else p[0]}'[:60])
            while name in cases: name += '+'
            cases[name] = (kind, f if p is None else partial(f, p))
        return f
    return _f

@contextmanager
def in_time():
    def _late(*args): raise TimeoutError(f'more than {limit} seconds')
    was = signal.signal(signal.SIGALRM, _late)
    signal.alarm(limit)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, was)

def refused(f, *words, e=(OSError,ValueError,TypeError)):
    "`f()` raises one of `e`, whose text has all of `words`"
    with pytest.raises(e) as r: f()
    assert not [w for w in words if str(w) not in str(r.value)], str(r.value)
    return 'refused'

def _kb(k): return int(Path('/proc/self/status').read_text().split(f'{k}:')[1].split()[0])

def _measured(f, w):
    "In the child: the outcome, what was raised, and the MB that it took"
    torch.set_num_threads(1)
    Path('/proc/self/clear_refs').write_text('5') # the peak begins here
    was,err,res = _kb('VmRSS'),'',None
    try: res = f()
    except BaseException: err = traceback.format_exc()
    os.write(w, json.dumps([res, err[-2000:], (_kb('VmHWM')-was)/1024]).encode())

def alone(f):
    "`f()` in a process of its own; at most 1 GB, and killed when it is late"
    r,w = os.pipe()
    if not (p := os.fork()):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit-2)
        try: _measured(f, w)
        finally: os._exit(0)
    os.close(w)
    with os.fdopen(r, 'rb') as o: got = o.read()
    _,status = os.waitpid(p, 0)
    assert got, f'it did not end in {limit-2} seconds, or was killed (status {status})'
    res,err,mb = json.loads(got)
    assert not err, err
    assert mb<1000, f'{mb:.0f} MB'
    return res

# Images

y,x = np.mgrid[:48,:64]
smooth = Image.fromarray(np.stack([x*4, y*5, 255-x*2-y*2], -1).astype(np.uint8))
grey = np.asarray(smooth.convert('L'))
exts = dict(JPEG='jpg', PNG='png', GIF='gif', BMP='bmp', TIFF='tif', WEBP='webp', AVIF='avif', JPEG2000='jp2', PPM='ppm', TGA='tga')
options = dict(JPEG=dict(quality=95), MPO=dict(quality=95), WEBP=dict(lossless=True), AVIF=dict(quality=95), ICO=dict(sizes=[(64,48)]))

def data(im, fmt, **kwargs):
    im.save(b := io.BytesIO(), fmt, **options.get(fmt, {}), **kwargs)
    return b.getvalue()

def put(d, name, content):
    d.mkdir(parents=True, exist_ok=True)
    (d/name).write_bytes(content)
    return d/name

def pixels(o, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.asarray(load_rgb(o, **kwargs)).astype(float)

@case('image cut off', *exts)
def cut(fmt, d):
    "At every tenth: refused, or all pixels are there"
    b = data(smooth, fmt)
    want,n = pixels(b),0
    for i in range(10):
        f = put(d, f'{i}.{exts[fmt]}', b[:len(b)*i//10])
        try: assert (pixels(f)==want).all(), f'{i} tenths give other pixels'
        except OSError as e:
            assert f'cannot read image {f}: ' in str(e) and 'skip_bad=True' in str(e) and '<_io' not in str(e)
            n += 1
    assert n>=9
    return 'refused'

@case('image with bits turned', *exts)
def turned(fmt, d):
    "Refused by name, or a picture; of a PNG, which has checksums, the right one"
    b,rng,n = data(smooth, fmt),np.random.default_rng(0),0
    want = pixels(b)
    def _all():
        for i in range(40):
            a = bytearray(b)
            a[rng.integers(min(len(a), 200 if i%2 else len(a)))] ^= 1<<int(rng.integers(8))
            f = put(d, f'{i}.{exts[fmt]}', bytes(a))
            try: x = pixels(f)
            except (OSError,ValueError) as e: assert f'{f}' in str(e), e
            else: assert x.ndim==3 and x.shape[2]==3 and (fmt!='PNG' or (x==want).all())
        return 'used'
    return alone(_all)

@case('image of wrong ending', ('png as jpg','PNG','jpg'), ('jpg as png','JPEG','png'), ('gif as tif','GIF','tif'), ('webp as bmp','WEBP','bmp'), ('tiff as png','TIFF','png'), ('ico as jpg','ICO','jpg'))
def ending(p, d):
    f = put(d, f'a.{p[2]}', data(smooth, p[1]))
    assert np.abs(pixels(f)-np.asarray(smooth)).mean()<(8 if p[1]=='GIF' else 3) and image_files(d)==[f]
    return 'used'

@case('image of wrong ending', ('text',b'no picture'*99), ('html',b'<!DOCTYPE html><html>not found</html>'), ('svg',b'<svg xmlns="http://www.w3.org/2000/svg"/>'), ('pickle',pickle.dumps(grey)), ('zip',b'PK\3\4'+bytes(99)),
      ('nothing',b''), ('zeros',bytes(5000)), ('pdf',data(smooth, 'PDF')), ('palm',data(smooth.convert('P'), 'PALM')))
def no_image(p, d): return refused(lambda: load_rgb(put(d, 'a.jpg', p[1])), f'cannot read image {d}/a.jpg: it is {"empty" if not p[1] else "no image, or of a kind that Pillow does not know"}')

@case('image of wrong ending')
def postscript(d):
    "A program under the name of a picture is not run"
    return refused(lambda: load_rgb(put(d, 'a.jpg', data(smooth, 'EPS'))), 'a.jpg: it is PostScript, a program, which is not run')

def in_mode(m):
    "A picture in mode `m`, and the RGB that it shows; None where its values do not say"
    if m=='I;16': return Image.fromarray(grey.astype(np.uint16)*257),np.stack([grey]*3, -1)
    if m in 'IF': return Image.fromarray((grey*257.).astype(dict(I=np.int32, F=np.float32)[m])),None
    if m in ('La','RGBa'): im = smooth.convert(m.upper()).convert(m)
    elif m=='PA': im = smooth.convert('P').convert('PA')
    else: im = smooth.convert(m, **(dict(dither=Image.Dither.NONE) if m=='1' else {}))
    return im,np.asarray(im.convert('RGB') if m not in ('La','RGBa') else im.convert(m.upper()).convert('RGB'))

Image.init()
lossy = 'JPEG','MPO','AVIF','GIF'
left = {*[(f,m) for f in ('AVIF','WEBP','GIF') for m in ('I;16','I','F')], *[('SPIDER',m) for m in ('I;16','I')]} # Pillow changes these values as it writes
modes = '1','L','LA','La','I','I;16','F','P','PA','RGB','RGBA','RGBa','RGBX','CMYK','YCbCr','HSV'

def writes(fmt, m):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return data(in_mode(m)[0], fmt)
    except Exception: return None

written = {(f'{f} {m}',f,m):b for f in sorted({*Image.SAVE}-{'EPS','PDF','PALM','ICNS','SPIDER','HDF5','GRIB','BUFR','WMF'}) for m in modes if (f,m) not in left and (b := writes(f, m))}

@case('image of any mode', *written)
def mode(p, d):
    "The right pixels, or a question for the range"
    f,want = put(d, 'a.tif', written[p]),in_mode(p[2])[1]
    if want is None and p[1]!='PPM' or p[2]=='F':
        refused(lambda: load_rgb(f), 'a.tif', 'value_range=')
        assert np.abs(pixels(f, value_range=(0,65535))-grey[...,None]).max()<=1
        return 'refused'
    if want is None: want = np.stack([grey]*3, -1)
    assert np.abs(pixels(f)-want).mean()<({'P':16, 'PA':16}.get(p[2], 6) if p[1] in lossy else 1.5 if p[2] in ('YCbCr','La','RGBa') else .51)
    return 'used'

@case('image animated', 'GIF','WEBP','PNG','TIFF','AVIF')
def animated(fmt, d):
    ims = [Image.new('RGB', (32,32), c) for c in ('#c86432','blue','lime')]
    f = put(d, 'a.gif', data(ims[0], fmt, save_all=True, append_images=ims[1:]))
    with pytest.warns(UserWarning, match='it has 3 pictures, the first is taken'): im = load_rgb(f)
    assert np.abs(np.asarray(im).astype(float)-[200,100,50]).max()<8
    return 'used'

@case('image animated')
def ring_of_pages(d):
    "A TIFF whose last page is followed by its first"
    t = bytearray(data(Image.fromarray(grey), 'TIFF', save_all=True, append_images=[Image.fromarray(grey)]*2))
    i = first = struct.unpack_from('<I', t, 4)[0]
    while i: i = struct.unpack_from('<I', t, at := i+2+12*struct.unpack_from('<H', t, i)[0])[0]
    struct.pack_into('<I', t, at, first)
    assert (pixels(put(d, 'a.tif', bytes(t)))==grey[...,None]).all()
    return 'used'

shapes = (1,1),(1,20000),(20000,1),(2,3)
@case('image of one pixel, or very long', *[(f'{w}x{h} to {s}, {m}',w,h,s,m) for w,h in shapes for s,m in ((49,1.),(32,.08))])
def crop(p, d):
    "Every crop shows its colour, in training and in validation"
    im,tfm = load_rgb(put(d, 'a.png', data(Image.new('RGB', p[1:3], (10,100,200)), 'PNG'))),CropResize(p[3], min_scale=p[4], flip=.5)
    assert im.size==p[1:3]
    for i in range(40): assert (tfm(im, split_idx=i%2)==tensor([10,100,200])[:,None,None]).all()
    return 'used'

def png(w, h, bits, colour):
    "A PNG of zeros, without making the picture"
    def _chunk(t, b): return struct.pack('>I', len(b))+t+b+struct.pack('>I', zlib.crc32(t+b))
    row,c = bytes(1+(w*bits*{0:1, 2:3, 3:1, 4:2, 6:4}[colour]+7)//8),zlib.compressobj(1)
    return b'\x89PNG\r\n\x1a\n'+_chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0))+_chunk(b'IDAT', b''.join(c.compress(row) for _ in range(h))+c.flush())+_chunk(b'IEND', b'')

@case('image that is a bomb', ('1 bit',20000,20000,1,0), ('1 bit within Pillow\'s limit',13000,13000,1,0), ('16 bits',10000,10000,16,0), ('RGB',11400,11400,8,2), ('RGBA',9500,9500,8,6))
def bomb(p, d):
    f = put(d, 'a.png', png(*p[1:]))
    return alone(lambda: refused(lambda: load_rgb(f), f'cannot read image {f}: ', 'pixels'))

@case('image that is a bomb', ('16 bits',7000,7000,16,0), ('RGB',7800,7800,8,2))
def large(p, d):
    "As large as can be opened in about 700 MB"
    f = put(d, 'a.png', png(*p[1:]))
    return alone(lambda: 'used' if load_rgb(f).size==tuple(p[1:3]) else None)

@case('image that is a bomb')
def large_jpeg(d):
    "Loaders that need small pictures open a JPEG of any size"
    f = put(d, 'a.jpg', data(Image.new('L', (13000,13000)), 'JPEG'))
    return alone(lambda: 'used' if load_rgb(f, 64).size==(1625,1625) else None)

names = {'unicode':'网络 émoji 🐈.jpg', 'spaces':'  a  b .jpg', 'newline':'a\nb.jpg', 'long':'x'*251+'.jpg', 'dash':'-rf.jpg', 'dots':'a..b...jpg', 'quotes':'\'a"`$(b).jpg', 'percent':'%s{0}.jpg', 'capitals':'A.JPG', 'not utf-8':os.fsdecode(b'\xff\xfe.jpg'), 'bars':'a|b;c&d.jpg', 'only the ending':'jpg.jpg'}
@case('image of odd name', *names)
def name(k, d):
    f = put(d/'train'/'a', names[k], data(smooth, 'PNG'))
    put(d/'train'/'b', names[k], data(smooth.rotate(90), 'PNG'))
    for c in 'ab': put(d/'val'/c, 'v.png', data(smooth, 'PNG'))
    dls = labelled_dls(d, 32, 2, num_workers=0, device='cpu', norm=None, augment=False)
    x,y = dls.train.new(shuffle=False).one_batch()
    assert dls.train_ds.items[0]==f and y.tolist()==[0,1] and abs(float(x[0].mean())-np.asarray(smooth.crop((8,0,56,48))).mean()/255)<.02
    f.write_bytes(b'x')
    refused(lambda: load_rgb(f), names[k])
    return 'used'

@case('image of odd name')
def hidden(d):
    put(d, '.a.jpg', b'x')
    return refused(lambda: image_files(d), f'no images in {d}')

# Folders

def photos(d, *at, n=2):
    for o in at:
        for i in range(n): put(d/o, f'{i}.png', data(smooth.rotate(90*i), 'PNG'))
    return d

def listing(d): return [str(o.relative_to(d)) for o in image_files(d)]

@case('folder')
def folder_called_as_an_image(d):
    assert listing(photos(d, 'x.jpg'))==['x.jpg/0.png','x.jpg/1.png']
    refused(lambda: load_rgb(d/'x.jpg'), 'x.jpg: it is no file, but a folder')
    return 'used'

@case('folder', 'empty','missing','a file')
def nothing(k, d):
    f = d/'e'
    if k=='empty': f.mkdir()
    if k=='a file': f.write_text('x')
    for g in (image_files,unlabeled_dls):
        if k!='a file': refused(lambda: g(f), 'no images in' if k=='empty' else 'no such folder', f)
    return refused(lambda: labelled_dls(f), f) if k!='a file' else refused(lambda: recipes.data_path(f), f, 'is a file')

@case('folder', 'nobody','nested')
def unreadable(k, d):
    "As a user who may not; root may everything"
    p = Path(tempfile.mkdtemp())
    p.chmod(0o755)
    photos(p, 'a', 'b/c')
    at = p/'a' if k=='nobody' else p/'b/c'
    at.chmod(0)
    try:
        if os.geteuid()==0: os.seteuid(65534)
        return refused(lambda: image_files(p), f'cannot list the folder {at}', 'make it readable')
    finally:
        if os.getuid()==0: os.seteuid(0)
        at.chmod(0o755)
        shutil.rmtree(p)

@case('folder', 'pipe','device','socket')
def no_file(k, d):
    f = photos(d, 'a')/'a'/'x.jpg'
    if k=='pipe': os.mkfifo(f)
    if k=='device': f.symlink_to('/dev/zero')
    if k=='socket':
        import socket
        here = os.getcwd()
        os.chdir(f.parent)
        with socket.socket(socket.AF_UNIX) as s: s.bind('x.jpg')
        os.chdir(here)
    refused(lambda: load_rgb(f), 'x.jpg: it is no file')
    with pytest.warns(UserWarning, match='left out 1 of 3'): assert len(unlabeled_dls(d, 16, 2, skip_bad=True, num_workers=0, valid_pct=0).train_ds)==2
    return 'refused'

@case('links')
def ring_of_two(d):
    "Two folders that hold a link to each other"
    photos(d, 'a', 'b', n=1)
    for o,q in ('ab','ba'): (d/o/'to').symlink_to(d/q)
    assert listing(d)==['a/0.png','a/to/0.png','b/0.png','b/to/0.png']
    return 'used'

@case('links')
def ring_of_many(d):
    "Five outside, each linked to all others, seen by way of one link: each once"
    photos(d, *(f'far/{o}' for o in 'abcde'), 'here/own', n=1)
    for o in 'abcde':
        for q in 'abcde': (d/'far'/o/f'to_{q}').symlink_to(d/'far'/q)
    (d/'here/x').symlink_to(d/'far/a')
    (d/'far/b/home').symlink_to(d/'here')
    assert len(listing(d/'here'))==6 and {os.path.realpath(d/'here'/o) for o in listing(d/'here')}=={str(d.resolve()/o/'0.png') for o in ('here/own',*(f'far/{c}' for c in 'abcde'))}
    return 'used'

@case('links', 'to itself','broken','broken folder')
def dead(k, d):
    photos(d, 'a')
    (d/'a/x.jpg').symlink_to(d/'a/x.jpg' if k=='to itself' else d/'none/x.jpg')
    if k=='broken folder': (d/'a/sub').symlink_to(d/'none')
    assert len(listing(d))==3
    return refused(lambda: load_rgb(d/'a/x.jpg'), 'x.jpg', 'Too many levels' if k=='to itself' else 'No such file')

class Then(Callback):
    "Does something to the files after an epoch"
    def __init__(self, do): self.do = do
    def after_epoch(self): self.do()

@case('file changed in training', 'vanishes','garbage','folder','shorter')
def changed(k, d):
    "The run stops and names the file; the encoder of the epoch before is on the disk, and the learner can go on"
    f = photos(d/'p', 'train', n=6)/'train/3.png'
    was = f.read_bytes()
    def _do():
        if k=='shorter': f.write_bytes(was[:len(was)//2])
        elif k=='garbage': f.write_bytes(b'garbage'*50)
        else: f.unlink()
        if k=='folder': f.mkdir()
    r = Recipe(str(d/'p'), 32, 2, 'xresnet_narrow', dict(nf=16, blocks=1), objective='simclr', epochs=2)
    dls = unlabeled_dls(d/'p', 32, 3, valid_pct=0, num_workers=0)
    hook = Then(_do)
    refused(lambda: recipes.pretrain(r, d/'w', dls, cbs=[hook]), f'cannot read image {f}', e=OSError)
    enc = load_encoder(d/'w.safetensors')
    assert enc.recipe['epoch']==1 and not enc.recipe['finished'] and json.loads((d/'w.json').read_text())['epoch']==1
    return 'refused'

@case('classes')
def one_class(d):
    photos(d, 'train/a', 'val/a', n=3)
    with pytest.warns(UserWarning, match=f'one class, a, in {d}/train'): dls = labelled_dls(d, 32, 2, num_workers=0)
    assert list(dls.vocab)==['a']
    return 'used'

@case('classes')
def unknown_class(d): return refused(lambda: labelled_dls(photos(d, 'train/a', 'train/b', 'val/c')), f'{d}/val has classes that', 'c')

# Weights files

small = dict(nf=16, blocks=1)

@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    "A small encoder's file, and beside it some that cannot be used"
    w = save_encoder(create_encoder('xresnet_narrow', **small), tmp_path_factory.mktemp('w')/'w')
    d,ws = w.parent,load_file(w)
    ws['0.0.weight'][0] = math.nan
    put(d/'CUT', w.name, w.read_bytes()[:999])
    rewritten(w, d/'HUGE', kwargs=dict(nf=160000)), rewritten(w, d/'NEWER', format=99), rewritten(w, d/'NAN', ws)
    return w

def rewritten(w, d, ws=None, **header):
    "The file with another header, or other tensors"
    if ws is None: ws = load_file(w)
    head = {k:v for k,v in {**encoder_info(w), **header}.items() if v is not ...}
    return put(d, 'w.safetensors', save(ws, dict(fastai_contrastive=header['text'] if 'text' in header else json.dumps(head))))

def raw(w, d, edit):
    "The file with its JSON header changed by `edit`, the numbers as they are"
    b = w.read_bytes()
    n = struct.unpack('<Q', b[:8])[0]
    head = json.loads(b[8:8+n])
    h = json.dumps(edit(head) or head).encode()
    return put(d, 'w.safetensors', struct.pack('<Q', len(h))+h+b[8+n:])

@case('encoder cut off', *range(10))
def enc_cut(i, d, w): return refused(lambda: load_encoder(put(d, 'w.safetensors', w.read_bytes()[:w.stat().st_size*i//10])), f'{d}/w.safetensors is not a safetensors file', 'pass a file that save_encoder wrote')

@case('encoder with bits turned', 'header','numbers')
def enc_turned(k, d, w):
    "Refused by name, or loaded into the same network"
    b,rng = w.read_bytes(),np.random.default_rng(0)
    n = struct.unpack('<Q', b[:8])[0]+8
    def _all():
        for i in range(12):
            a = bytearray(b)
            a[rng.integers(0, n) if k=='header' else rng.integers(n, len(a))] ^= 1<<int(rng.integers(8))
            try: e = load_encoder(put(d, 'w.safetensors', bytes(a)))
            except ValueError as err: assert 'w.safetensors' in str(err), err
            else: assert e.nf==16 and all(p.isfinite().all() for p in e.parameters())
        return 'used'
    return alone(_all)

def lie(k, at, v):
    def _edit(h): h[k][at] = v
    return _edit
lies = {'offsets of terabytes':lie('0.0.weight', 'data_offsets', [0,10**13]), 'negative offsets':lie('0.0.weight', 'data_offsets', [-8,8]), 'a shape of terabytes':lie('0.0.weight', 'shape', [10**6,10**6,3]),
        'offsets that overlap':lie('0.1.weight', 'data_offsets', [0,4]), 'an unknown type':lie('0.0.weight', 'dtype', 'F99'), 'other type':lie('0.0.weight', 'dtype', 'F64'),
        'shape as text':lie('0.0.weight', 'shape', 'big'), 'a list':lambda h: [1,2], 'shape of 2^63':lie('0.0.weight', 'shape', [2**63-1,2])}
@case('encoder that lies about sizes', *lies)
def enc_lies(k, d, w): return alone(lambda: refused(lambda: load_encoder(raw(w, d, lies[k])), 'w.safetensors is not a safetensors file'))

@case('encoder that lies about sizes', 2**60, 2**63-1, 0, 10**8+1)
def enc_length(n, d, w): return alone(lambda: refused(lambda: load_encoder(put(d, 'w.safetensors', struct.pack('<Q', n)+w.read_bytes()[8:])), 'w.safetensors is not a safetensors file'))

@case('encoder that lies about sizes')
def enc_sparse(d, w):
    "A file of 4 TB on a disk that has not as much"
    f = put(d, 'w.safetensors', w.read_bytes())
    os.truncate(f, 4*2**40)
    return alone(lambda: refused(lambda: load_encoder(f), 'w.safetensors is not a safetensors file'))

big = [dict(nf=10**9), dict(nf=160000), dict(nf=16, blocks=10**6), dict(nf=16, blocks=10**12), dict(nf=16, blocks=1, n=[1e308])]
@case('encoder that lies about sizes', *[(str(o),o) for o in big])
def enc_settings(p, d, w): return alone(lambda: refused(lambda: load_encoder(rewritten(w, d, kwargs=p[1])), 'w.safetensors'))

entries = dict(arch=5, arch_=None, n_in='3', n_in_=0, n_in__=-1, n_in___=10**9, n_in____=True, kwargs='nf=16', kwargs_=[1], stats=5, stats_=dict(mean=[0.]), stats__=dict(mean=[0.]*3, std=[0.]*3), stats___=dict(mean=[0.]*2, std=[1.]*2),
    stats____=dict(mean=['a']*3, std=[1.]*3), stats_____=dict(mean=[math.nan]*3, std=[1.]*3), recipe='long ago', recipe_=[1], needs='act_cls', format='1', format_=-1, format__=True, format___=1.5)
@case('encoder with a wrong header', *entries)
def enc_entry(k, d, w): return refused(lambda: load_encoder(rewritten(w, d, **{k.rstrip('_'):entries[k]})), 'w.safetensors says '+k.rstrip('_'), 'pass a file that save_encoder wrote')

texts = {'nested':('{"arch":'+'['*10**5, 'no JSON'), 'nested and closed':('{"arch":'+'['*10**5+']'*10**5+'}', 'JSON'), 'a list':('[]', 'no dictionary'), 'a text':('"arch n_in"', 'no dictionary'), 'a number':('5', 'no dictionary'), 'null':('null', 'no dictionary'), 'nothing':('', 'no JSON'), 'no arch':('{"n_in":3}', 'does not say arch')}
@case('encoder with a wrong header', *texts)
def enc_text(k, d, w): return alone(lambda: refused(lambda: load_encoder(rewritten(w, d, text=texts[k][0])), 'w.safetensors', texts[k][1]))

@case('encoder of another arch', 'xresnet18','resnet18','nosuch','vit_tiny_patch16_224','timm:resnet18')
def enc_arch(k, d, w): return refused(lambda: load_encoder(rewritten(w, d, arch=k)), 'w.safetensors', k.removeprefix('timm:'))

@case('encoder of another arch')
def enc_unknown_setting(d, w): return refused(lambda: load_encoder(rewritten(w, d, kwargs=dict(nf=16, colour='red'))), 'w.safetensors', 'colour')

@case('encoder of another arch', 'pretrained','weights','checkpoint_path')
def enc_sources(k, d, w):
    "A header cannot make the reader fetch or open another file"
    assert torch.equal(load_encoder(rewritten(w, d, kwargs={**small, k:True}))(torch.ones(2,3,32,32)), load_encoder(w)(torch.ones(2,3,32,32)))
    return 'used'

changes = {'a shape':lambda t: t.flatten(), 'whole numbers':lambda t: t.long(), 'booleans':lambda t: t>0, 'complex':lambda t: t.to(torch.complex64), 'transposed':lambda t: t.transpose(0,1).contiguous()[:0]}
@case('encoder of wrong shapes or types', *changes)
def enc_tensor(k, d, w):
    ws = load_file(w)
    return refused(lambda: load_encoder(rewritten(w, d, {**ws, '0.0.weight':changes[k](ws['0.0.weight'])})), 'does not fit', '0.0.weight: ')

@case('encoder of wrong shapes or types', 'one less','one more','none')
def enc_names(k, d, w):
    ws = load_file(w)
    if k=='one less': del ws['0.0.weight']
    if k=='one more': ws['extra'] = torch.zeros(2)
    return refused(lambda: load_encoder(rewritten(w, d, {} if k=='none' else ws)), 'does not fit', 'extra' if k=='one more' else 'missing in the file: 0.0.weight')

@case('encoder of wrong shapes or types', 'half','bfloat16','double')
def enc_floats(k, d, w):
    "Other floating-point numbers are those of the network, in full precision"
    ws = {n:getattr(t, k)() if t.is_floating_point() else t for n,t in load_file(w).items()}
    e = load_encoder(rewritten(w, d, ws))
    assert all(p.dtype==torch.float32 and torch.allclose(p, q, rtol=1e-2, atol=1e-3) for p,q in zip(e.parameters(), load_encoder(w).parameters()))
    return 'used'

@case('encoder with numbers that are none', math.nan, math.inf, -math.inf)
def enc_nan(v, d, w):
    ws = load_file(w)
    ws['0.0.weight'][0,0,0,:2] = v
    return refused(lambda: load_encoder(rewritten(w, d, ws)), 'w.safetensors: 2 of the 27 numbers of 0.0.weight are not finite', 'had diverged')

@case('encoder of another format')
def enc_newer(d, w): return refused(lambda: load_encoder(rewritten(w, d, format=encoder_format+1)), f'w.safetensors has format {encoder_format+1}', 'update fastai_contrastive')

@case('encoder of another format')
def enc_before(d, w):
    "A file from before there was a number"
    f = rewritten(w, d, format=...)
    assert encoder_info(f)['format']==0 and encoder_info(w)['format']==encoder_format==1 and load_encoder(f).nf==16
    return 'used'

class Payload:
    "What a pickle would do when it is opened"
    def __init__(self, at): self.at = at
    def __reduce__(self): return Path.touch, (self.at,)

@case('pickle under the right name', 'pickle','torch','old torch')
def enc_pickle(k, d, w):
    b,at = io.BytesIO(),d/'ran'
    if k=='pickle': pickle.dump(Payload(at), b)
    else: torch.save(dict(a=Payload(at)), b, _use_new_zipfile_serialization=k=='torch')
    f = put(d, 'w.safetensors', b.getvalue())
    refused(lambda: load_encoder(f), 'w.safetensors is not a safetensors file')
    refused(lambda: recipes.evaluate(f, photos(d/'p', 'train/a', 'train/b', 'val/a')), 'w.safetensors')
    assert not at.exists()
    return 'refused'

@case('encoder that is no file', 'folder','pipe','device')
def enc_no_file(k, d, w):
    f = d/'w.safetensors'
    if k=='folder': f.mkdir()
    if k=='pipe': os.mkfifo(f)
    if k=='device': f.symlink_to('/dev/zero')
    return refused(lambda: load_encoder(f), 'w.safetensors is no file')

# Checkpoints

def state(d, **more):
    write_state(dict(w=torch.arange(100.), n=3, **more), d/'1', dict(epoch=1))
    return d/'1'

def resum(p, edit):
    "The JSON changed by `edit`, with a checksum that is right"
    from fastai_contrastive.checkpoints import _sha, _text
    o = json.loads(p.with_suffix('.json').read_text())
    del o['check']
    edit(o)
    p.with_suffix('.json').write_text(_text(dict(check=_sha(_text(o).encode()), **o)))
    return p

@case('checkpoint cut off', *[(f'{s} {i}/10',s,i) for s in ('.json','.safetensors') for i in range(0,10,3)])
def cp_cut(p, d):
    f = state(d).with_suffix(p[1])
    f.write_bytes(f.read_bytes()[:f.stat().st_size*p[2]//10])
    return refused(lambda: read_state(d/'1'), f'{f} cannot be used', e=ValueError)

@case('checkpoint with bits turned', '.json','.safetensors')
def cp_turned(s, d):
    f = state(d).with_suffix(s)
    b,rng = f.read_bytes(),np.random.default_rng(0)
    for i in range(60):
        a = bytearray(b)
        a[rng.integers(len(a))] ^= 1<<int(rng.integers(8))
        f.write_bytes(bytes(a))
        refused(lambda: read_state(d/'1'), f'{f} cannot be used', e=ValueError)
    return 'refused'

def without(k): return lambda o: o.pop(k)
def setting(k, v): return lambda o: o.update({k:v})
crafted = {'no format':without('format'), 'format as text':setting('format', '1'), 'a newer format':setting('format', 99), 'format true':setting('format', True), 'no head':without('head'), 'no state':without('state'), 'no tensors':without('tensors'),
    'an unknown mark':setting('state', {'$code':'print(1)'}), 'an unknown tensor':setting('state', {'$tensor':'99'}), 'a mark of the wrong kind':setting('state', {'$dict':5}), 'a tensor as path':setting('state', {'$path':5}),
    'a number that is none':setting('state', {'$float':'x'}), 'a scalar as list':setting('state', {'$format':'channels_last', '$tensor':'0'}), 'a list as a set':setting('state', {'$set':[[1]]}), 'wrong size':setting('bytes', 10**13)}
@case('checkpoint that is crafted', *crafted)
def cp_crafted(k, d):
    words = ['update fastai_contrastive'] if k=='a newer format' else []
    return refused(lambda: read_state(resum(state(d), crafted[k])), f'{d}/1', 'cannot be used', *words, e=ValueError)

@case('checkpoint that is crafted', 'json','safetensors')
def cp_nested(k, d):
    p = state(d)
    if k=='json': p.with_suffix('.json').write_text('['*10**5+']'*10**5)
    else:
        from fastai_contrastive.checkpoints import _sha
        b = p.with_suffix('.safetensors')
        b.write_bytes(h := struct.pack('<Q', 10**5)+b'['*10**5)
        resum(p, lambda o: o.update(tensors=_sha(h), bytes=len(h)))
    return alone(lambda: refused(lambda: read_state(p), f'{d}/1.{k} cannot be used', e=ValueError))

@case('checkpoint that is crafted')
def cp_sparse(d):
    os.truncate(state(d).with_suffix('.safetensors'), 4*2**40)
    return alone(lambda: refused(lambda: read_state(d/'1'), '1.safetensors cannot be used', 'it has 4398046511104 bytes', e=ValueError))

@case('checkpoint that is no file', '.json','.safetensors')
def cp_pipe(s, d):
    f = state(d).with_suffix(s)
    f.unlink()
    os.mkfifo(f)
    return refused(lambda: read_state(d/'1'), f'{f} cannot be used', 'no file', e=ValueError)

@case('checkpoint missing', '.json','.safetensors')
def cp_gone(s, d):
    state(d).with_suffix(s).unlink()
    return refused(lambda: read_state(d/'1'), f'1{s}', e=OSError)

@case('pickle under the right name', '.json','.safetensors')
def cp_pickle(s, d):
    from fastai_contrastive.checkpoints import _sha
    b = pickle.dumps(Payload(d/'ran'))
    state(d).with_suffix(s).write_bytes(b)
    if s=='.safetensors': resum(d/'1', lambda o: o.update(tensors=_sha(b), bytes=len(b)))
    refused(lambda: read_state(d/'1'), f'1{s} cannot be used', e=ValueError)
    assert not (d/'ran').exists()
    return 'refused'

@case('checkpoint before it', 'cut','garbage','folder')
def cp_before(k, d):
    "The newest that is whole is taken, and that is said"
    cs,said = Checkpoints(d/'c'),[]
    (d/'c').mkdir()
    for i in range(2): cs.write(dict(i=i))
    f = (d/'c/00000002.json')
    if k=='cut': f.write_bytes(f.read_bytes()[:50])
    if k=='garbage': f.write_bytes(b'\xff'*50)
    if k=='folder': f.unlink(); f.mkdir()
    assert cs.read(said.append)[0]==dict(i=0) and len(said)==1 and '00000002.json' in said[0] and 'the state before it is taken' in said[0]
    return 'refused'

# Settings

here = photos(Path(tempfile.mkdtemp()), 'train/a', 'train/b', 'val/a', 'val/b', n=3)
atexit.register(shutil.rmtree, here)
tiny = dict(data=str(here), size=32, bs=2, arch='xresnet_narrow', arch_args=small)
bad = {'size':['32', 0, 1.5, None.__class__, 10**9, True], 'bs':[0, 'many'], 'epochs':[2.5, '3', -1], 'lr':['x', 10**400, math.nan, 0, [1e-3], True, 1j], 'wd':[-1, '0'], 'seed':[2**70, -1, 'x'], 'weight':[-1, 'balanced', math.inf], 'with_val':['no', 1],
       'task':[5, 'nosuch', ['rotation']], 'objective':[5, 'nosuch', SimCLR(temp=.3), SimCLR], 'arch_args':['widen=.5', [1], {5:1}, dict(nf=10**9)], 'objective_args':['temp=1', [('temp',1)], dict(temp='x'), dict(dim=1.5), dict(hidden=10**7), dict(nosuch=1)],
       'views_args':[5, dict(hue='x'), dict(nosuch=1)], 'terms':['simclr', [('vicreg',1)], {5:1}, dict(vicreg=True), dict(vicreg='much'), dict(vicreg=10**400)], 'term_args':['x', dict(vicreg=5)], 'task_args':[dict(grid=4)]}
@case('setting of Recipe', *[(f'{k}={v!r}'[:40],k,v) for k,vs in bad.items() for v in vs])
def recipe(p, d):
    "Refused when the recipe is written down, or its parts are made; the message names the setting"
    k,v = p[1:]
    kw = {**tiny, 'objective':'simclr', **({'terms':dict(vicreg=1.)} if k=='term_args' else {}), k:v}
    word = dict(terms='term', objective='objective', task='task').get(k, k)
    if isinstance(v, dict) and k=='terms' and 5 not in v: word = 'vicreg'
    return refused(lambda: recipes.recipe_learner(Recipe(**kw), num_workers=0), word, e=(ValueError,TypeError))

@case('setting of Recipe', ('no task',{}), ('unlabelled alone',dict(task='rotation', unlabelled='x')), ('args of nothing',dict(task='rotation', objective_args=dict(temp=.1))), ('twice',dict(objective='simclr', terms=dict(SimCLR=1))),
      ('labels and val',dict(objective='supcon', with_val=True)), ('labels of unlabelled',dict(task='rotation', terms=dict(supcon=1), unlabelled=str(here))), ('data',dict(objective='simclr', data=5)), ('no folder',dict(objective='simclr', data='nosuch')))
def contradictory(p, d):
    word = {'no task':'needs a task', 'args of nothing':'objective_args', 'twice':'twice', 'labels and val':'with_val', 'data':'data is a folder', 'no folder':'nosuch'}.get(p[0], 'unlabelled')
    return refused(lambda: recipes.recipe_learner(Recipe(**{**tiny, **p[1]}), num_workers=0), word)

@case('setting that is used', ('bs',dict(bs=10**12)), ('lr',dict(lr=np.float32(1e-3))), ('size',dict(size=np.int64(32))), ('seed',dict(seed=2**40)), ('no settings',dict(objective_args={}, terms={})))
def accepted(p, d):
    learn = recipes.recipe_learner(Recipe(**{**tiny, 'objective':'simclr', **p[1]}), num_workers=0)
    b = learn.dls.train.one_batch()[0]
    assert b.shape==(5 if p[0]=='bs' else 2,3,32,32)
    return 'used'

def command(d, name, args):
    "Status and what was said of a command that must not train"
    script = d/f'contrastive-{name}'
    script.write_text(f'from fastai_contrastive.cli import {"evaluate" if name=="eval" else name} as f\nf()')
    out,err,was,argv = io.StringIO(),io.StringIO(),(sys.stdout,sys.stderr),sys.argv
    sys.argv,sys.stdout,sys.stderr = [str(script),*args],out,err
    try: runpy.run_path(str(script), run_name='__main__')
    except SystemExit as e: return e.code,err.getvalue()
    finally: sys.argv,(sys.stdout,sys.stderr) = argv,was
    return 0,err.getvalue()

commands = [
    ('pretrain', '--objective simclr --size big', '--size'), ('pretrain', '--objective simclr --size 70000', 'size must be 65535 or less'), ('pretrain', '--objective simclr --num-workers 100000', 'num-workers must be 1024 or less'),
    ('pretrain', '--objective simclr --seed 99999999999999999999999', 'seed must be'), ('pretrain', '--objective simclr --lr 1e999', 'lr must be a finite number'), ('pretrain', '--objective simclr --epochs 1e3', '--epochs'),
    ('pretrain', '--objective simclr --with-val maybe', 'maybe'), ('pretrain', '--objective simclr --objective-args dim=1.5', '--objective-args'), ('pretrain', '--objective simclr --objective-args dim=True', '--objective-args'),
    ('pretrain', '--objective simclr --objective-args hidden=1000000000', '--objective-args'), ('pretrain', '--objective byol --objective-args pred_hidden=None', '--objective-args'), ('pretrain', '--terms vicreg --term-args vicreg.dim=1000000', '--term-args'),
    ('pretrain', '--objective simclr --arch-args nf=99999999', '--arch-args'), ('pretrain', '--objective simclr --views-args hue=[1,2,3]', '--views-args'), ('pretrain', f'--objective simclr --data DATA/train/a/0.png', 'is a file'),
    ('pretrain', f'--objective simclr --data DATA --out {"x"*250}', 'cannot write'), ('pretrain', '--objective simclr --objective-args temp='+'['*500+']'*500, 'key=value'), ('pretrain', '--objective simclr,vicreg', 'objective'),
    ('finetune', '--encoder W --pct -1', 'pct'), ('finetune', '--encoder W --data DATA --epochs 0', 'epochs'), ('finetune', '--encoder CUT --data DATA', 'not a safetensors file'), ('finetune', '--encoder NAN --data DATA', 'not finite'),
    ('finetune', '--encoder NEWER --data DATA', 'update fastai_contrastive'), ('finetune', '--encoder HUGE --data DATA', 'larger than its weights'), ('finetune', '--encoder DATA --data DATA', 'is no file'), ('finetune', '--encoder xresnet18 --arch-args widen=x --data DATA', '--arch-args'),
    ('eval', '--encoder CUT --data DATA', 'not a safetensors file'), ('eval', '--encoder NAN --data DATA', 'not finite'), ('eval', '--encoder W --k 1.5', '-k'), ('eval', '--encoder W --C nan', 'C must be'), ('eval', '--encoder W --C=-1', 'must be above 0'),
    ('bench', '--threads 100000', 'threads must be 1024 or less'), ('bench', '--repeats 0', 'repeats must be'), ('bench', '--arch nosuch', 'nosuch'), ('bench', '--size -3', 'size must be 1 or more'),
    ('demo', '--size 100000', 'size must be 65535 or less'), ('demo', '--seed -1', 'seed must be'), ('demo', '--bs x', '--bs'), ('demo', '--epochs 1.5', '--epochs')]
@case('setting of a command', *[(f'{n} {a[:30]}',n,a,w) for n,a,w in commands])
def said(p, d, w):
    "One line, status 2, and nothing trained"
    args = p[2]+(' --arch xresnet_narrow' if p[1]=='pretrain' and '--arch-args' not in p[2] else '')
    files = dict(DATA=here, W=w, **{k:w.parent/k/'w.safetensors' for k in ('CUT','HUGE','NEWER','NAN')})
    status,err = command(d, p[1], [str(files.get(o, o)).replace('DATA/', f'{here}/') for o in args.split()])
    assert status==2 and err.startswith(f'contrastive-{p[1]}: error: ') and err.count('\n')==1 and p[3] in err, err
    return 'refused'

@pytest.mark.parametrize('name', cases)
def test_case(name, tmp_path, weights, monkeypatch, record_property):
    kind,f = cases[name]
    if kind.startswith('setting of'): monkeypatch.setattr(Learner, 'fit', lambda *a, **k: pytest.fail('trained'))
    monkeypatch.chdir(tmp_path)
    with in_time(): res = f(tmp_path, weights) if 'w' in inspect.signature(f).parameters else f(tmp_path)
    assert res in ('used','refused')
    record_property('bad input', [kind,res])

def test_there_are_many():
    assert len(cases)>=150 and len({k for k,_ in cases.values()})>=25

# Files of earlier versions

old = Path(__file__).parent/'old'

@pytest.mark.parametrize('name', [o.stem for o in sorted(old.glob('encoder-*.safetensors'))])
def test_an_old_encoder_file_gives_the_same_features(name):
    want = json.loads((old/'values.json').read_text())[name]
    enc = load_encoder(old/f'{name}.safetensors').eval()
    x = torch.sin(torch.arange(2*3*32*32).float()*.37).reshape(2,3,32,32)
    with torch.no_grad(): got = enc(x)[:,:len(want['features'][0])]
    torch.testing.assert_close(got, tensor(want['features']), rtol=1e-3, atol=1e-4)
    assert (enc.arch,enc.nf,enc.stats,enc.recipe)==tuple(want[k] for k in ('arch','nf','stats','recipe'))
    assert encoder_info(old/f'{name}.safetensors')['format']==int(name.split('-')[1])

def test_old_files_are_there(): assert len(list(old.glob('encoder-0-*.safetensors')))==4 and (old/'state-1.json').exists()

def test_an_old_state_is_the_same():
    s,head = read_state(old/'state-1')
    assert head==dict(epoch=3, step=17, saved='2026-11-30')
    assert torch.equal(s['w'], torch.arange(12.).reshape(3,4)/7) and torch.equal(s['half'], tensor([1.5,-2.]).bfloat16()) and s['half'].dtype==torch.bfloat16
    assert torch.equal(s['cl'], torch.arange(24.).reshape(1,2,3,4)) and s['cl'].is_contiguous(memory_format=torch.channels_last)
    assert s['losses']==[i/3 for i in range(20)] and s['steps']==list(range(-3,17)) and s['at']==(3,None,True) and s['best']==math.inf and math.isnan(s['bad'])
    assert s['path']==Path('a/b') and s['by']=={0:'zero', 1:b'one', (1,2):'pair'} and type(s['values']) is L and list(s['values'])==[1.,None]
    assert s['rng'].dtype==np.uint32 and s['rng'].tolist()==[0,1,2,3,4] and list(s['last'])==[1,2] and s['names']=={'x'} and s['text']=='網\n' and s['empty']==[{},(),b''] and [float(o) for o in s['scalars']]==list(range(17))
