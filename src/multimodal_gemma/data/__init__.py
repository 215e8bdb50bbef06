"""From published files to what training reads.

sets, choose    which conversations, of one set or several      formats: every published form, read into one
sources/        files, folders, archives, buckets and hubs      places: where the images of a set lie
collect         the images that those conversations name        work: what is finished outlives the pod
  |
raw dataset     shards (pictures by their bytes), conversations     base_models, benchmarks: fetched beside it
  |
prepare         pixels (see pictures) and tokens, in slices     split: by picture; contamination
  |
processed       what training reads                             statistics, report, look: what a person reads
"""
