"Files of every kind: which are found, what their values mean, which way is up, and what cannot be read"
import io, multiprocessing, os, pickle, struct, warnings, zlib
from multiprocessing.reduction import ForkingPickler
import pytest
from PIL import Image
from fastai.vision.all import *
from fastai_contrastive.images import *
from fastai_contrastive.data import labelled_dls, unlabeled_dls

# pytest would collect fastcore's
for o in [o for o in globals() if o=='test' or o.startswith('test_')]: del globals()[o]

def cpu(f, *args, **kwargs): return f(*args, num_workers=0, device='cpu', **kwargs)

ramp = np.linspace(0, 1, 64*64).reshape(64,64)
grey = (ramp*255).astype(np.uint8)
u16 = (ramp*65535).astype(np.uint16)
rgb = Image.fromarray(np.stack([grey, grey[::-1], grey.T], -1))

def write_images(path, n, size=(40,50)):
    path.mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.fromarray(np.random.default_rng(i).integers(0, 255, (*size,3), dtype=np.uint8)).save(path/f'{i}.jpg')
    return path

def saved(im, path, **kwargs):
    im.save(path, **kwargs)
    return path

def tiff(a, photometric=1, fmt=1, extra=None, end='<', orient=None, bits=None, width=None):
    "Bytes of an uncompressed TIFF of an array, (h, w) or (h, w, bands), and whatever its tags claim"
    a = np.asarray(a)
    spp,data = a.shape[2] if a.ndim==3 else 1, a.astype(a.dtype.newbyteorder(end)).tobytes()
    tags = {256:('H',[width or a.shape[1]]), 257:('H',[a.shape[0]]), 258:('H',[bits or a.itemsize*8]*spp), 259:('H',[1]), 262:('H',[photometric]),
            273:('I',[0]), 277:('H',[spp]), 278:('H',[a.shape[0]]), 279:('I',[len(data)]), 284:('H',[1]), 339:('H',[fmt]*spp)}
    if orient: tags[274] = 'H',[orient]
    if extra: tags[338] = 'H',extra
    def _write(at):
        ents,ext,start = b'',b'',8+2+12*len(tags)+4
        for t,(f,v) in sorted(tags.items()):
            raw = struct.pack(end+f*len(v), *([at] if t==273 else v))
            if len(raw)>4: raw,ext = struct.pack(end+'I', start+len(ext)),ext+raw
            ents += struct.pack(end+'HHI', t, 3 if f=='H' else 4, len(v))+raw.ljust(4, b'\0')
        return (b'II*\0' if end=='<' else b'MM\0*')+struct.pack(end+'IH', 8, len(tags))+ents+bytes(4)+ext
    return _write(len(_write(0)))+data

def png(a, colour, bits=16):
    "Bytes of a PNG of which each row of `a` is a row of bytes"
    def chunk(t, d): return struct.pack('>I', len(d))+t+d+struct.pack('>I', zlib.crc32(t+d))
    n = {0:1, 2:3, 4:2, 6:4}[colour]
    w = a.shape[1]//n if bits==16 else a.shape[1]*8//bits//n
    rows = b''.join(b'\0'+r.astype('>u2' if bits==16 else 'u1').tobytes() for r in a)
    return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, len(a), bits, colour, 0, 0, 0))+chunk(b'IDAT', zlib.compress(rows))+chunk(b'IEND', b'')

def pixels(o, **kwargs): return np.asarray(load_rgb(o, **kwargs)).astype(float)

def quiet(o, **kwargs):
    "The red channel, and no warning"
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        return pixels(o, **kwargs)[...,0]

# Which files

def test_image_files(tmp_path):
    p = write_images(tmp_path/'a'/'b', 3)
    (p/'note.txt').write_text('x'); (p/'.hidden.jpg').write_text('x')
    write_images(tmp_path/'c', 2)
    assert [o.name for o in image_files(tmp_path/'a')] == ['0.jpg', '1.jpg', '2.jpg']
    assert len(image_files(str(tmp_path))) == 5 and len(image_files(tmp_path, folders=['c'])) == 2
    assert image_files([tmp_path/'c', p/'2.jpg'])[-1] == p/'2.jpg'

def test_image_files_errors(tmp_path):
    (tmp_path/'empty').mkdir()
    write_images(tmp_path/'c', 1)
    for f in (image_files, partial(cpu, unlabeled_dls)):
        with pytest.raises(FileNotFoundError, match=r'no images in .*empty'): f(tmp_path/'empty')
        with pytest.raises(FileNotFoundError, match='no such folder: .*nowhere'): f(tmp_path/'nowhere')
        with pytest.raises(FileNotFoundError, match='no such folder: .*unsup'): f(tmp_path, folders=['c','unsup'])
        with pytest.raises(FileNotFoundError, match='list is empty'): f([])
    with pytest.raises(ValueError, match='needs a folder'): image_files([tmp_path/'c'], folders='c')

def test_what_only_looks_like_a_users_image(tmp_path):
    p = write_images(tmp_path/'a', 2)
    for o in ('.ipynb_checkpoints','__MACOSX/a','@eaDir/0.jpg','.git'): write_images(p/o, 1)
    (p/'._0.jpg').write_bytes(b'mac'); (p/'UPPER.JPG').write_bytes((p/'0.jpg').read_bytes())
    assert [o.name for o in image_files(tmp_path)] == ['0.jpg','1.jpg','UPPER.JPG']

def test_links(tmp_path):
    "Folders and files that are links count under their link's name; a link to a folder above is not followed for ever"
    a = write_images(tmp_path/'far/a', 2)
    (tmp_path/'d').mkdir()
    (tmp_path/'d/cat').symlink_to(a)
    (tmp_path/'d/one.jpg').symlink_to(a/'0.jpg')
    (tmp_path/'d/up').symlink_to(tmp_path/'d')
    (a/'round').symlink_to(tmp_path/'far')
    assert [str(o.relative_to(tmp_path/'d')) for o in image_files(tmp_path/'d')] == ['cat/0.jpg','cat/1.jpg','one.jpg']
    (tmp_path/'d/dead.jpg').symlink_to(tmp_path/'nothing.jpg')
    with pytest.raises(OSError, match='dead.jpg.*No such file'): load_rgb(image_files(tmp_path/'d')[2])

def test_listed_file_of_any_name(tmp_path):
    f = saved(rgb, tmp_path/'scan', format='PNG')
    assert image_files([f]) == [f] and load_rgb(f).size == (64,64)
    (tmp_path/'x.jpg').mkdir()
    saved(rgb, tmp_path/'x.jpg/a.png')
    assert [o.name for o in image_files([tmp_path/'x.jpg'])] == ['a.png']

# What values mean

def palette_with_transparency(p):
    im = rgb.convert('P', palette=Image.Palette.ADAPTIVE, colors=16)
    return saved(im, p/'t.png', transparency=bytes([0]*8+[255]*8))

formats = {
    'grey':    lambda p: saved(Image.fromarray(grey), p/'a.png'),
    '1 bit':   lambda p: saved(Image.fromarray(grey).convert('1'), p/'a.png'),
    'RGBA':    lambda p: saved(rgb.convert('RGBA'), p/'a.png'),
    'LA':      lambda p: saved(Image.fromarray(grey).convert('LA'), p/'a.png'),
    'palette': lambda p: saved(rgb.convert('P'), p/'a.gif'),
    'palette+transparency': palette_with_transparency,
    'CMYK':    lambda p: saved(rgb.convert('CMYK'), p/'a.jpg', quality=95),
    'RGB, YCbCr jpeg': lambda p: saved(rgb, p/'a.jpg', quality=95),
    '16 bit png':  lambda p: saved(Image.fromarray(u16), p/'a.png'),
    '16 bit tiff': lambda p: saved(Image.fromarray(u16), p/'a.tif'),
    'grey jpeg':   lambda p: saved(Image.fromarray(grey), p/'a.jpg', quality=95),
    'webp':        lambda p: saved(rgb, p/'a.webp', lossless=True),
    '16 bit pgm':  lambda p: saved(Image.fromarray(u16), p/'a.pgm'),
    '16 bit jp2':  lambda p: saved(Image.fromarray(u16), p/'a.jp2'),
}

@pytest.mark.parametrize('fmt', formats)
def test_formats(tmp_path, fmt):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        im = load_rgb(formats[fmt](tmp_path))
    assert isinstance(im, PILImage) and im.mode == 'RGB' and im.size == (64,64)
    x = np.asarray(im).astype(float)
    if 'RGB' in fmt or 'CMYK' in fmt or 'palette' in fmt or fmt == 'webp': assert np.abs(x-np.asarray(rgb)).mean() < 25
    elif fmt != '1 bit': assert np.abs(x-grey[...,None]).mean() < 2
    dls = cpu(unlabeled_dls, tmp_path, size=16, bs=2)
    assert dls.one_batch()[0].shape == (1,3,16,16)

def test_big_endian_and_mid_values():
    a = np.array([[0,257,32896,65535]], dtype=np.uint16)
    buf = io.BytesIO()
    Image.frombytes('I;16B', (4,1), a.astype('>u2').tobytes()).save(buf, 'TIFF')
    assert np.asarray(load_rgb(buf.getvalue()))[0,:,0].tolist() == [0,1,128,255]
    for end in '<>': assert quiet(tiff(a, end=end))[0].tolist() == [0,1,128,255]
    assert quiet(Image.frombytes('I;16B', (4,1), a.astype('>u2').tobytes()))[0].tolist() == [0,1,128,255]

def test_scale_is_not_of_the_content():
    "The same value is the same grey beside any others"
    a = np.full((8,8), 20000, np.uint16)
    for other in (0, 20001, 40000, 65535):
        a[0,0] = other
        assert quiet(tiff(a))[4,4] == 78
        assert quiet(tiff(a.astype(np.float32), fmt=3), value_range=(0,65535))[4,4] == 78
        assert quiet(tiff(a.astype(np.int32), fmt=2), value_range=(0,65535))[4,4] == 78
        assert quiet(a)[4,4] == 78 == quiet(tensor(a.astype(np.float32)), value_range=(0,65535))[4,4]

unclear = {
    'float tiff': lambda top: tiff((ramp*top).astype(np.float32), fmt=3),
    'float tiff by Pillow': lambda top: Image.fromarray((ramp*top).astype(np.float32)),
    '32 bit tiff': lambda top: tiff((ramp*top).astype(np.int32), fmt=2),
    'signed 16 bit': lambda top: tiff((ramp*top).astype(np.int16), fmt=2),
    'float array': lambda top: (ramp*top).astype(np.float32),
    'double array': lambda top: ramp*top,
    'int64 tensor': lambda top: tensor((ramp*top).astype(np.int64)),
    'float tensor': lambda top: torch.tensor(ramp*top).float(),
    'half tensor, (c, h, w)': lambda top: torch.tensor(ramp*top)[None].expand(3,-1,-1).half(),
    'bfloat16 TensorImage': lambda top: TensorImage(torch.tensor(ramp*top)[None].expand(3,-1,-1).bfloat16()),
}

@pytest.mark.parametrize('kind', unclear)
@pytest.mark.parametrize('top', [1., 1.001, 255., 4000.])
def test_no_guess(kind, top):
    "What does not say what is white is refused at any maximum, and is right by a range"
    o = unclear[kind](top)
    with pytest.raises(ValueError, match=r'do not say what is black and what is white \(here they go from 0 to .*value_range='): load_rgb(o)
    if top==4000:
        x = quiet(o, value_range=(0,4000))
        assert np.abs(x-grey).max() <= (2 if 'bfloat' in kind else 1)
        assert quiet(o, value_range=(0,8000)).max() == 128
        assert pixels(o, value_range=(1000,2000)).max() == 255

def test_refusal_names_the_file_and_comes_with_the_dataloaders(tmp_path):
    for c in 'ab':
        for s in ('train','val'):
            (tmp_path/s/c).mkdir(parents=True)
            (tmp_path/s/c/'f.tif').write_bytes(unclear['float tiff'](1.))
    for f in (unlabeled_dls, labelled_dls):
        with pytest.raises(ValueError, match=r'f\.tif.*value_range'): cpu(f, tmp_path, size=16, bs=2)
        dls = cpu(f, tmp_path, size=64, bs=2, value_range=(0,1), norm=None)
        x = dls.valid.one_batch()[0]
        assert abs(float(x.mean())-.5) < .01 and len(x.unique()) > 200

def test_twelve_bits_in_sixteen(tmp_path):
    f = tmp_path/'a.tif'
    f.write_bytes(tiff((ramp*4095).astype(np.uint16)))
    with pytest.warns(UserWarning, match=r'a\.tif.*an eighth of white.*value_range=\(0, 4095\)'): assert len(np.unique(pixels(f))) == 17
    assert len(np.unique(quiet(f, value_range=(0,4095)))) == 256
    with pytest.warns(UserWarning, match='value_range') as w:
        dls = cpu(unlabeled_dls, [f]*9, size=16, bs=2)
        for _ in dls.train: pass
    assert len(w) == 1, 'said once, not for each file'
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        x = cpu(unlabeled_dls, [f]*9, size=64, bs=2, value_range=(0,4095), norm=None).valid.one_batch()[0]
    assert len(x.unique()) == 256

def test_packed_twelve_bits():
    "Two values in three bytes: the TIFF itself says that 4095 is white"
    v = np.linspace(0, 4095, 64).astype(int)
    packed = np.array([[v[i]>>4, (v[i]&15)<<4|v[i+1]>>8, v[i+1]&255] for i in range(0, 64, 2)], dtype=np.uint8).reshape(1,-1)
    x = quiet(tiff(packed, bits=12, width=64))[0]
    assert np.abs(x-v*255/4095).max() <= .5
    assert np.abs(quiet(tiff(packed, bits=12, width=64), value_range=(0,2047))[0]-(v*255/2047).clip(max=255)).max() <= .5

def test_white_is_zero():
    "A TIFF that counts from white to black, as scanners of film write it, at 8 bits and at 16"
    assert np.abs(quiet(tiff(grey, photometric=0))-(255-grey.astype(float))).max() == 0
    assert np.abs(quiet(tiff(u16, photometric=0))-(255-grey.astype(float))).max() <= 1
    assert np.abs(quiet(tiff(ramp.astype(np.float32), photometric=0, fmt=3), value_range=(0,1))-(255-grey.astype(float))).max() <= 1

def test_pnm_header_is_its_range():
    a = (ramp*4095).astype('>u2')
    pgm = b'P5\n64 64\n4095\n'+a.tobytes()
    assert np.abs(quiet(pgm)-grey).max() <= 1
    with pytest.raises(ValueError, match='Pillow scales its values.*leave it out'): load_rgb(pgm, value_range=(0,4095))

@pytest.mark.parametrize('colour,n', [(2,3),(4,2),(6,4)])
def test_sixteen_bit_colour(colour, n):
    "Pillow keeps the upper eight bits of each value: right by the rule, and no range of the file's values can be meant"
    a = np.repeat(u16, n, 1)
    assert np.abs(quiet(png(a, colour))-grey).max() <= 1
    with pytest.raises(ValueError, match='Pillow scales its values'): load_rgb(png(a, colour), value_range=(0,4095))
    three = np.stack([u16]*3, -1)
    assert np.abs(quiet(tiff(three, photometric=2))-grey).max() <= 1
    with pytest.raises(ValueError, match='Pillow scales its values'): load_rgb(tiff(three, photometric=2), value_range=(0,4095))

def test_range_of_eight_bits():
    a = (grey//16)
    assert np.abs(quiet(saved_bytes(Image.fromarray(a)), value_range=(0,15))-a*17.).max() == 0
    assert np.abs(quiet(a, value_range=(0,15))-a*17.).max() == 0
    for o in (saved_bytes(rgb), rgb, np.asarray(rgb), saved_bytes(rgb.convert('P'), 'GIF')):
        with pytest.raises(ValueError, match=r'8 bits and end at 255, value_range=\(0, 4095\)'): load_rgb(o, value_range=(0,4095))
        assert (pixels(o, value_range=(0,255))==pixels(o)).all()
    with pytest.raises(ValueError, match='Pillow scales'): load_rgb(png(np.array([[0b00011011]]), 0, bits=2), value_range=(0,3))
    assert quiet(png(np.array([[0b00011011]]), 0, bits=2))[0].tolist() == [0,85,170,255]

def saved_bytes(im, fmt='PNG', **kwargs):
    im.save(b := io.BytesIO(), fmt, **kwargs)
    return b.getvalue()

@pytest.mark.parametrize('r', [(4095,0), (0,0), (0,), (0,1,2), 4095, 'ab', (0,float('nan')), (0,float('inf')), (None,1)])
def test_bad_range(r, tmp_path):
    f = saved(rgb, tmp_path/'a.png')
    for g in (partial(load_rgb, f), OpenRGB, partial(bad_images, [f], pbar=False), partial(cpu, unlabeled_dls, [f])):
        with pytest.raises(ValueError, match='value_range is what is black and what is white'): g(value_range=r)

def test_range_takes_numpys_numbers():
    a = ramp.astype(np.float32)
    for r in ([0,1], np.array([0.,1.]), (tensor(0.),tensor(1.))): assert np.abs(quiet(a, value_range=r)-grey).max() <= 1

def test_range_that_is_wrong_is_told():
    for o in (ramp.astype(np.float32), tiff(ramp.astype(np.float32), fmt=3)):
        with pytest.warns(UserWarning, match='eighth of white'): load_rgb(o, value_range=(0,4095))
        with pytest.warns(UserWarning, match='100% of its values are outside of value_range'): load_rgb(o, value_range=(2,3))
    with pytest.warns(UserWarning, match='outside of value_range'): load_rgb(u16, value_range=(0,1))
    assert quiet(np.zeros((4,4), np.uint16)).max() == 0, 'a black picture is nothing odd'

@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_not_finite(bad):
    a = ramp.astype(np.float32)
    a[3,5:7] = bad
    for o in (a, tensor(a), tiff(a, fmt=3), Image.fromarray(a)):
        with pytest.raises(ValueError, match='2 of its 4096 values are not finite'): load_rgb(o, value_range=(0,1))

@pytest.mark.parametrize('mode', ['1','L','P','PA','LA','La','RGB','RGBA','RGBa','RGBX','CMYK','YCbCr','HSV','LAB'])
def test_modes_of_pil_images(mode):
    if mode in ('L','1','LA','La'): src = Image.fromarray(grey)
    else: src = Image.fromarray(np.stack([grey, grey.T, np.full_like(grey, 40)], -1))
    if mode=='LAB':
        from PIL import ImageCms
        im = ImageCms.profileToProfile(src, ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB')
    elif mode in ('La','RGBa'): im = src.convert(mode.upper()).convert(mode)
    elif mode=='PA': im = src.convert('P').convert('PA')
    else: im = src.convert(mode)
    got,want = pixels(im),np.asarray(src.convert('RGB')).astype(float)
    if mode!='1': assert np.abs(got-want).mean() < (25 if mode in ('P','PA') else 2 if mode!='LAB' else 6)
    assert im.mode==mode, 'left as it was'

# Layout of arrays

def test_layouts():
    a = np.asarray(rgb)[:,:50]
    want = a.astype(float)
    chw = a.transpose(2,0,1)
    for o in (a, tensor(a), chw, tensor(chw.copy()), TensorImage(tensor(chw.copy())), Image.fromarray(a)): assert (pixels(o)==want).all()
    for o in (a[...,0], tensor(a[...,0].copy()), a[...,:1], chw[:1], TensorImage(tensor(chw[:1].copy())), TensorImageBW(tensor(chw[:1].copy()))):
        assert (pixels(o)==want[...,:1]).all()
    rgba = np.concatenate([a, np.full_like(a[...,:1], 9)], -1)
    for o in (rgba, rgba.transpose(2,0,1)): assert (pixels(o)==want).all(), 'transparency is dropped'
    for o in (a, chw): assert np.abs(pixels(o.astype(np.uint16)*257)-want).max() <= 1
    t = torch.tensor((a.astype(np.uint16)*257).astype(np.int32)).to(torch.uint16)
    assert np.abs(pixels(t)-want).max() <= 1
    assert set(np.unique(pixels(a[...,0]>99))) == {0,255}
    thin = TensorImage(tensor(a[:,:4].transpose(2,0,1).copy()))
    assert (pixels(thin)==want[:,:4]).all(), 'a TensorImage has its channels first at any width'

@pytest.mark.parametrize('shape,why', [((64,64,5),'1, 3 or 4 channels'), ((2,64,64),'1, 3 or 4 channels'), ((2,3,64,64),'one picture'), ((64,),'one picture'),
                                       ((3,10,3),r'can be \(c, h, w\) or \(h, w, c\)'), ((4,4,3),'can be')])
def test_layouts_that_are_refused(shape, why):
    for o in (np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=why): load_rgb(o)

def test_no_numbers():
    for a in (np.array([['a']*4]*4), np.zeros((8,8), complex), np.zeros((8,8), object)):
        with pytest.raises(ValueError, match='made of numbers'): load_rgb(a)

def test_five_bands(tmp_path):
    five = np.stack([grey]*5, -1)
    f = tmp_path/'five.tif'
    for a,fmt,words in ((five,1,'5 bands of 8 bits'), (five.astype(np.uint16),1,'5 bands of 16 bits'), (ramp,3,'1 bands of float 64 bits'),
                        (np.stack([ramp.astype(np.float32)]*3, -1),3,'3 bands of float 32 bits')):
        f.write_bytes(tiff(a, fmt=fmt))
        for o in (f, f.read_bytes()):
            with pytest.raises(OSError, match=f'a TIFF with {words}, which Pillow cannot open: .* DataBlock'): load_rgb(o)
    with pytest.warns(UserWarning, match='it has 5 bands, the first 3 are taken'): load_rgb(tiff(five, photometric=2, extra=[0,0]))
    with pytest.warns(UserWarning, match='it has 4 bands, the first 3 are taken'): load_rgb(tiff(five[...,:4], photometric=2, extra=[0]))
    assert quiet(tiff(five[...,:4], photometric=2, extra=[2])).shape == (64,64), 'a fourth band that is transparency'

@pytest.mark.parametrize('fmt', ['GIF','TIFF','WEBP','PNG'])
def test_many_pictures(tmp_path, fmt):
    "The first one is taken, and that there are others is said"
    ims = [Image.new('RGB', (32,32), c) for c in ('red','green','blue')]
    f = tmp_path/f'a.{fmt.lower()}'
    ims[0].save(f, save_all=True, append_images=ims[1:])
    for o in (f, f.read_bytes()):
        with pytest.warns(UserWarning, match='it has 3 pictures, the first is taken'): x = pixels(o)
        assert np.abs(x-[255,0,0]).max() < 6
    with Image.open(f) as im:
        im.seek(2)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert np.abs(pixels(im)-[0,0,255]).max() < 6, 'an open image: the picture it stands at'

# Which way is up

corner = np.zeros((48,80,3), dtype=np.uint8)
corner[:12,:20] = 255,0,0
corner[36:,:20] = 0,0,255
# What a camera that noted `n` had written of an upright picture
lay = {1:[], 2:[Image.FLIP_LEFT_RIGHT], 3:[Image.ROTATE_180], 4:[Image.FLIP_TOP_BOTTOM], 5:[Image.TRANSPOSE], 6:[Image.ROTATE_90],
       7:[Image.TRANSVERSE], 8:[Image.ROTATE_270]}

def noted(n, fmt, im=Image.fromarray(corner), **kwargs):
    for t in lay[n]: im = im.transpose(t)
    exif = Image.Exif()
    exif[274] = n
    return saved_bytes(im, fmt, exif=exif, **kwargs)

def same(o, want=corner, tol=12): return np.asarray(o).shape==want.shape and np.abs(np.asarray(o).astype(float)-want).mean() < tol

@pytest.mark.parametrize('fmt', ['JPEG','PNG','WEBP','TIFF','MPO'])
@pytest.mark.parametrize('n', range(1,9))
def test_exif(tmp_path, n, fmt):
    b = noted(n, fmt, **(dict(quality=95) if fmt in ('JPEG','MPO') else {}))
    f = tmp_path/'a.jpg'
    f.write_bytes(b)
    for o in (f, str(f), b, Image.open(f)): assert same(load_rgb(o))
    if fmt!='TIFF': assert same(load_rgb(PILImage.create(f))), 'opened by fastai, which keeps the note and does not heed it'
    once = load_rgb(f)
    assert once.getexif().get(274, 1)==1 and same(load_rgb(once)), 'turned once, however often it is asked'
    assert same(load_rgb(b, value_range=(0,255)))

@pytest.mark.parametrize('n', [1,3,6,8])
def test_exif_of_deep_grey_and_palette(n):
    deep = Image.fromarray(u16[:40])
    assert np.abs(quiet(noted(n, 'PNG', deep))-grey[:40]).max() <= 1
    assert np.abs(quiet(noted(n, 'TIFF', deep))-grey[:40]).max() <= 1
    assert np.abs(quiet(noted(n, 'PNG', Image.fromarray(grey[:40])))-grey[:40]).max() == 0
    assert same(load_rgb(noted(n, 'PNG', Image.fromarray(corner).convert('P'))))

@pytest.mark.parametrize('n', [6,8,3])
def test_exif_in_draft_mode(tmp_path, n):
    (tmp_path/'a.jpg').write_bytes(noted(n, 'JPEG', Image.fromarray(corner).resize((800,480)), quality=95))
    im = load_rgb(tmp_path/'a.jpg', 100)
    assert im.size == (200,120) and same(im.resize((80,48)), tol=15)

@pytest.mark.parametrize('n', [6,8,3])
def test_exif_in_batches(tmp_path, n):
    for s in ('train','val'):
        for c in 'ab':
            (tmp_path/s/c).mkdir(parents=True)
            for i in range(2): (tmp_path/s/c/f'{i}.jpg').write_bytes(noted(n, 'JPEG', quality=95))
    want = Resize(48)(PILImage.create(corner), split_idx=1)
    for f in (unlabeled_dls, labelled_dls):
        x = cpu(f, tmp_path, size=48, bs=2, norm=None).valid.one_batch()[0][0]
        assert same((x.permute(1,2,0)*255).numpy(), np.asarray(want), 15)

@pytest.mark.parametrize('exif', [b'Exif\0\0broken', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x01\0\0\0ab\0\0\0\0\0\0'])
def test_damaged_exif_is_none(exif):
    b = saved_bytes(Image.fromarray(corner), 'JPEG', quality=95, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert same(load_rgb(b))

@pytest.mark.parametrize('n', [0,9,255])
def test_unknown_orientation_is_none(n):
    exif = Image.Exif()
    exif[274] = n
    assert same(load_rgb(saved_bytes(Image.fromarray(corner), 'JPEG', quality=95, exif=exif)))

# Opening

@pytest.mark.parametrize('size,least', [(None,400),(200,200),(150,200),(100,100),(60,100),(10,50)])
def test_draft_never_below_size(tmp_path, size, least):
    rgb.resize((600,400)).save(tmp_path/'a.jpg')
    assert min(load_rgb(tmp_path/'a.jpg', size).size) == least

def test_load_rgb_takes_what_fastai_takes(tmp_path):
    f = saved(rgb, tmp_path/'a.png')
    a = np.array(rgb)
    for o in (f, str(f), f.read_bytes(), rgb, a, tensor(a), PILImage.create(f)): assert (np.asarray(load_rgb(o)) == a).all()
    assert load_rgb(rgb.convert('CMYK')).mode == 'RGB'
    assert (np.asarray(load_rgb(Image.open(f))) == a).all() and type(rgb) is Image.Image, 'opened, not yet read; and left as it was'
    got = load_rgb(rgb)
    got.putpixel((0,0), (1,2,3))
    assert rgb.getpixel((0,0)) != (1,2,3)

@pytest.fixture
def good_and_bad(tmp_path):
    "Six good images, and one each that is corrupt, truncated, empty"
    p = write_images(tmp_path/'mixed', 6)
    (p/'corrupt.jpg').write_bytes(b'this is no image'*50)
    (p/'truncated.jpg').write_bytes((p/'0.jpg').read_bytes()[:-400])
    (p/'zero.png').write_bytes(b'')
    return p

bad_names = {'corrupt.jpg', 'truncated.jpg', 'zero.png'}

@pytest.mark.parametrize('name', sorted(bad_names))
def test_bad_file_is_named(good_and_bad, name):
    with pytest.raises(OSError, match=f'cannot read image .*{name}'): load_rgb(good_and_bad/name)
    with pytest.raises(OSError, match='cannot read image'): load_rgb((good_and_bad/name).read_bytes())
    files = [good_and_bad/f'{i}.jpg' for i in range(6)]+[good_and_bad/name]
    with pytest.raises(OSError, match=name):
        for _ in cpu(unlabeled_dls, files, size=16, bs=2, valid_pct=0, drop_last=False).train: pass
    with pytest.raises(OSError, match='gone.jpg'): load_rgb(good_and_bad/'gone.jpg')

def test_bad_file_is_named_by_a_worker(good_and_bad):
    files = [good_and_bad/f'{i}.jpg' for i in range(6)]+[good_and_bad/'zero.png']
    with pytest.raises(OSError, match='zero.png'):
        dls = unlabeled_dls(files, size=16, bs=2, valid_pct=0, drop_last=False, num_workers=1, device='cpu')
        for _ in dls.train: pass

def test_skip_bad(good_and_bad):
    bad = bad_images(image_files(good_and_bad), pbar=False)
    assert {o.name for o in bad} == bad_names and all(bad.values())
    with pytest.warns(UserWarning, match='left out 3 of 9') as w: dls = cpu(unlabeled_dls, good_and_bad, size=16, bs=2, skip_bad=True)
    assert all(n in str(w[0].message) for n in bad_names)
    assert {o.name for o in dls.train_ds.items+dls.valid_ds.items} == {f'{i}.jpg' for i in range(6)}
    for _ in dls.train: pass
    with pytest.raises(OSError, match='none of the 2 images'): unlabeled_dls([good_and_bad/'zero.png', good_and_bad/'corrupt.jpg'], skip_bad=True)

def test_skip_bad_leaves_out_what_says_too_little(good_and_bad):
    (good_and_bad/'f.tif').write_bytes(unclear['float tiff'](1.))
    assert 'value_range' in bad_images([good_and_bad/'f.tif'], pbar=False)[good_and_bad/'f.tif']
    assert bad_images([good_and_bad/'f.tif'], pbar=False, value_range=(0,1)) == {}
    with pytest.warns(UserWarning, match=r'left out 4 of 10.*f\.tif \(float32 values do not say'):
        dls = cpu(unlabeled_dls, good_and_bad, size=16, bs=2, skip_bad=True)
    assert len(dls.train_ds)+len(dls.valid_ds) == 6
    with pytest.raises(OSError, match='none of the 1 images can be read.*value_range'): unlabeled_dls([good_and_bad/'f.tif'], skip_bad=True)

def test_skip_bad_labelled(tmp_path):
    for d in ('train','val'):
        for c in 'ab': write_images(tmp_path/d/c, 2)
    (tmp_path/'train/a/zero.jpg').write_bytes(b'')
    with pytest.warns(UserWarning, match='zero.jpg'): dls = cpu(labelled_dls, tmp_path, size=16, bs=2, skip_bad=True)
    assert len(dls.train_ds) == 4

# Transforms, and what a pickle of them is

@pytest.mark.parametrize('make', [lambda: OpenRGB(70), lambda: OpenRGB(70, (0,9)), lambda: CropResize(32, min_scale=.5, flip=.5)])
def test_copies_and_workers_have_the_real_class(make):
    o = make()
    ways = [copy, deepcopy, lambda o: pickle.loads(pickle.dumps(o)), lambda o: pickle.loads(ForkingPickler.dumps(o)),
            *[lambda o,p=p: pickle.loads(pickle.dumps(o, protocol=p)) for p in (2,5)]]
    for f in ways:
        c = f(o)
        assert type(c) is type(o) and c is not o
        for k in ('size','value_range','min_scale','flip','mode','order','split_idx'):
            if hasattr(o, k): assert getattr(c, k)==getattr(o, k)

def _names(dls, conn): conn.send([type(dls.train_ds.tls[0].tfms.fs[0]).__name__, [type(o).__name__ for o in dls.after_item.fs], float(dls.valid.one_batch()[0].sum())])

def test_spawned_process_has_the_real_class(tmp_path):
    "Started afresh, as on a Mac, not forked"
    dls = cpu(unlabeled_dls, write_images(tmp_path/'a', 4), size=16, bs=2)
    ctx = multiprocessing.get_context('spawn')
    a,b = ctx.Pipe()
    p = ctx.Process(target=_names, args=(dls, b))
    p.start()
    assert a.poll(120)
    kind,fs,s = a.recv()
    p.join()
    assert kind == 'OpenRGB' and 'CropResize' in fs and s == pytest.approx(float(dls.valid.one_batch()[0].sum()))

@pytest.mark.parametrize('wh', [(50,40), (375,500), (160,213), (161,97), (64,64), (33,1000), (20,20)])
@pytest.mark.parametrize('size', [16,64,97])
def test_central_crop_is_fastais(wh, size):
    im = PILImage.create(np.random.default_rng(0).integers(0, 255, (wh[1],wh[0],3), dtype=np.uint8))
    a = CropResize(size, min_scale=.35, flip=.5)(im, split_idx=1)
    assert type(a) is TensorImage and torch.equal(a, ToTensor()(Resize(size)(im, split_idx=1)))
