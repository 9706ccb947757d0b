// Opens an image with the ROIs that `pffnet predict --format roi` wrote for it.
// For Fiji and ImageJ 1.53 and later: Plugins > Macros > Run...
//
// The image a.tif gets the ROIs of a_rois.zip (or a.tif_rois.zip) in the folder of results.

image = File.openDialog("Image");
results = getDirectory("Folder of the results");
rois = results + File.getNameWithoutExtension(image) + "_rois.zip";
if (!File.exists(rois)) {
    rois = results + File.getName(image) + "_rois.zip";
}
if (!File.exists(rois)) {
    exit("No ROIs of " + File.getName(image) + " in " + results);
}
open(image);
roiManager("reset");
roiManager("open", rois);
roiManager("show all without labels");
print(File.getName(image) + ": " + roiManager("count") + " objects");
