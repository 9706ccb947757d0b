// Puts results of `pffnet predict --format geojson` onto the images of the open project, by name.
// For QuPath 0.4 and later: Automate > Script editor, set the folder below, Run.
//
// The image a.tif gets the objects of a.geojson (or a.tif.geojson), in the folder or in folders below it. Objects that
// an image already has are not added again, so the script may be run twice. Save the open image before, and choose
// File > Reload data after, because the script writes to the project and not to the window.

import qupath.lib.io.PathIO

def folder = new File("results")

if (!folder.isDirectory()) {
    println "There is no folder ${folder.getAbsolutePath()}: set it at the top of this script"
    return
}
def project = getProject()
if (project == null) {
    println "No project is open"
    return
}

def files = [:]
folder.eachFileRecurse { file ->
    if (file.getName().endsWith(".geojson")) {
        files.computeIfAbsent(file.getName(), { name -> [] }).add(file)
    }
}

for (entry in project.getImageList()) {
    def name = entry.getImageName()
    def bare = name.replaceFirst(/(?i)(\.ome)?\.[^.]+$/, "")
    def found = [name, bare].unique().collectMany { files.getOrDefault(it + ".geojson", []) }
    if (found.size() != 1) {
        println "${name}: ${found.isEmpty() ? 'no result' : 'several results, ' + found.join(', ')}; left out"
        continue
    }
    def imageData = entry.readImageData()
    def hierarchy = imageData.getHierarchy()
    def known = hierarchy.getAllObjects(false).collect { it.getID() }.toSet()
    def objects = PathIO.readObjects(found[0].toPath()).findAll { !known.contains(it.getID()) }
    hierarchy.addObjects(objects)
    entry.saveImageData(imageData)
    println "${name}: ${objects.size()} objects of ${found[0].getName()}"
}
