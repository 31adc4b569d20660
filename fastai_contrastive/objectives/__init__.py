from fastai_contrastive._submodules import reexport
reexport(globals())
