"""From published files to what training reads.

sets, choose    which conversations, and the split by picture   formats: every published form, read into one
sources/        files, folders, archives, buckets and hubs      places: where the images of a set lie
collect         the images that those conversations name        delivery: what is finished outlives the pod
  |
raw dataset     shards (pictures by their bytes), conversations     base_models, benchmarks: fetched beside it
  |
prepare         pixels (of pictures) and tokens, arrow slices   contamination: what a benchmark asks about
  |
processed       what training reads                             statistics, report: what a person reads
"""
